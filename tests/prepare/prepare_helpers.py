"""Photos, in folders and in other layouts, and what `prepare` makes of them."""

import io
import tarfile

from conftest import PHOTOS
from PIL import Image

from jaxcolor.prepare import prepare

SIZE = 48  # of what `prepare_records` prepares


def write_photos(root):
    """Writes 40 small photos of 2 classes to a folder, among them five that are rejected; returns the folder."""
    paths = sorted((PHOTOS / 'train').glob('*.jpg'))
    for i in range(35):
        image = Image.open(paths[i % 20]).resize((120 + i, 90))
        (root / 'ab'[i % 2]).mkdir(exist_ok=True)
        image.save(root / 'ab'[i % 2] / f'{i:03}.jpg', quality=90)
    (root / 'a' / 'text.jpg').write_text('no photo')
    (root / 'a' / 'cut.jpg').write_bytes((root / 'a' / '000.jpg').read_bytes()[:2000])
    (root / 'b' / 'empty.jpg').write_bytes(b'')
    Image.open(paths[0]).resize((1, 1)).save(root / 'b' / 'tiny.jpg')
    Image.open(paths[0]).convert('L').convert('RGB').save(root / 'b' / 'gray.jpg')
    return root


def contents(folder):
    """{path below the folder: bytes} of all its files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def names(shard_set, split):
    """The names of a split's photos, in order."""
    records = shard_set.records(split)
    return [records[i]['name'] for i in range(len(records))]


def _jpegs():
    """{(class, split, file name): JPEG bytes} of six bundled photos, 60 pixels high."""
    jpegs = {}
    for i, path in enumerate(sorted((PHOTOS / 'train').glob('*.jpg'))[:6]):
        file = io.BytesIO()
        Image.open(path).resize((80, 60)).save(file, 'JPEG', quality=95)
        jpegs['ab'[i % 2], 'train' if i < 4 else 'validation', f'{i:08}.jpg'] = file.getvalue()
    return jpegs


JPEGS = _jpegs()
JPEG = next(iter(JPEGS.values()))


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tree(root):
    """Writes JPEGS to a folder tree by split and class."""
    for (label, split, name), data in JPEGS.items():
        write(root / split / label / name, data)


def add_to_tar(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def prepare_records(path, tmp_path, **options):
    """Prepares a source -> {Lab bytes: (class or None, split)}."""
    shards = prepare(path, tmp_path / 'out', **{'size': SIZE, 'quiet': True, **options})
    by_lab = {}
    for split in shards.counts:
        records = shards.records(split)
        for i in range(len(records)):
            label = int(records[i]['label'])
            by_lab[records[i]['lab'].tobytes()] = (shards.classes[label] if label >= 0 else None, split)
    return by_lab


def prepare_tree(root):
    """The records of JPEGS from a folder tree: what every other layout must give, too."""
    write_tree(root / 'photos')
    by_lab = prepare_records(root / 'photos', root)
    assert len(by_lab) == 6
    assert set(by_lab.values()) == {(label, split) for label in 'ab' for split in ('train', 'validation')}
    return by_lab


def rejected(tmp_path):
    """`rejected.csv` as {name: reason}."""
    lines = (tmp_path / 'out' / 'rejected.csv').read_text().splitlines()[1:]
    return {name: reason.strip('"') for name, reason in (line.split(',', 1) for line in lines)}

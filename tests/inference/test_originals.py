"""Which photos are colored and where results go: originals stay, results are known by their tag, clashes are renamed."""

import hashlib
import os

import pytest
from conftest import assert_one_sentence
from odd_photos import color_quietly, forbid_folder, quadrants
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.plan import plan_outputs
from jaxcolor.inference.tags import read_tag

PHOTO = Image.fromarray(quadrants())


def save(*paths):
    for turn, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        PHOTO.rotate(90 * turn).convert('L').save(path)


def files_of(folder):
    """{path below the folder: digest} of all files."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


# Originals.


@pytest.mark.parametrize(
    ('photos', 'argument', 'out', 'colored'),
    [
        (['p/x.jpg', 'p/sub/x.jpg'], 'p', 'p/sub', []),
        (['p/x.png', 'p/sub/y.png'], 'p', 'p/sub', ['p/sub/x.png']),
        (['scans/1920/a.tif', 'scans/a.tif', 'scans/1920/b.tif'], 'scans/1920', 'scans', ['scans/b.tif']),
        (['s/1/a.png', 's/1/1/b.png', 's/1/b.png'], 's/1', 's', ['s/a.png', 's/b.png']),
        (['p/a.webp', 'q/a.webp', 'q/b.webp'], 'p', 'q', []),
    ],
)
def test_originals_are_never_written_over(colorizer, tmp_path, photos, argument, out, colored):
    save(*(tmp_path / name for name in photos))
    before = files_of(tmp_path)
    for _ in range(2):
        summary = color_quietly(colorizer, [tmp_path / argument], tmp_path / out)
        after = files_of(tmp_path)
        assert {name: after[name] for name in before} == before
        assert sorted(set(after) - set(before)) == sorted(colored)
        for failure in summary.failures:
            assert '--overwrite' in failure or 'would be overwritten by' in failure
    assert summary.colored == 0


def test_overwrite_replaces_other_files_but_no_photo_that_is_read(colorizer, tmp_path):
    save(tmp_path / 'p' / 'a.png', tmp_path / 'out' / 'a.png')
    original = files_of(tmp_path)['p/a.png']
    assert color_quietly(colorizer, [tmp_path / 'p'], tmp_path / 'out').colored == 0
    assert color_quietly(colorizer, [tmp_path / 'p'], tmp_path / 'out', overwrite=True).colored == 1
    assert read_tag(tmp_path / 'out' / 'a.png').source == original == files_of(tmp_path)['p/a.png']
    with pytest.raises(UserError, match='would be overwritten'):
        plan_outputs([tmp_path / 'p' / 'a.png'], tmp_path / 'p')


def test_no_photo_is_replaced_by_another_ones_result(colorizer, tmp_path):
    save(tmp_path / 'a' / 'x.png', tmp_path / 'a' / 'sub' / 'x.png')
    before = files_of(tmp_path)
    summary = color_quietly(colorizer, [tmp_path / 'a/sub/x.png', tmp_path / 'a/x.png'], tmp_path / 'a', overwrite=True)
    assert any('a/x.png would be overwritten by the result of' in failure for failure in summary.failures)
    assert before.items() <= files_of(tmp_path).items()


def test_results_of_more_pixels_than_pillow_takes_are_known(colorizer, tmp_path, monkeypatch):
    save(tmp_path / 'p' / 'sub' / 'a.png')
    assert color_quietly(colorizer, [tmp_path / 'p' / 'sub'], tmp_path / 'p').colored == 1
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1)
    assert [photo.parent.name for photo, _ in plan_outputs([tmp_path / 'p'], tmp_path).pairs] == ['sub']


def test_links_to_originals_are_not_replaced(colorizer, tmp_path):
    save(tmp_path / 'p' / 'a.png', tmp_path / 'p' / 'b.png', tmp_path / 'archive' / 'a.png')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a.png').symlink_to(tmp_path / 'archive' / 'a.png')
    (tmp_path / 'out' / 'b.png').symlink_to(tmp_path / 'p' / 'b.png')
    before = files_of(tmp_path)
    assert color_quietly(colorizer, [tmp_path / 'p'], tmp_path / 'out').colored == 0
    assert files_of(tmp_path) == before


def test_the_folder_of_results_under_another_name(colorizer, tmp_path):
    """It is left out where the search comes to it by a link, too."""
    save(tmp_path / 'p' / 'a.png')
    (tmp_path / 'p' / 'link').symlink_to(tmp_path / 'out')
    for colored in (1, 0):
        assert color_quietly(colorizer, [tmp_path / 'p'], tmp_path / 'out').colored == colored
    assert set(files_of(tmp_path / 'out')) == {'a.png'}


def test_running_again_in_one_folder(trained, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'a.jpg', tmp_path / 'b.tif', tmp_path / 'c.webp', tmp_path / 'd.bmp')
    results = []
    for colored in (4, 0, 0):
        code, out, err = cli('colorize', f'--model={trained}', '.')
        assert code == 0 and f'{colored} of 4' in out
        assert ('4 photos were finished' in err) == (colored == 0)
        results.append(files_of(tmp_path))
    assert results[0] == results[1] == results[2] and len(results[0]) == 8


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
def test_what_has_changed_is_colored_again(colorizer, trained, tmp_path, suffix):
    photo, result = tmp_path / f'a{suffix}', tmp_path / 'out' / f'a{suffix}'
    save(photo)
    assert [color_quietly(colorizer, [photo], tmp_path / 'out').colored for _ in range(2)] == [1, 0]
    PHOTO.rotate(180).save(photo)
    assert [color_quietly(colorizer, [photo], tmp_path / 'out').colored for _ in range(2)] == [1, 0]
    smaller = Colorizer(trained, size=32)
    assert [color_quietly(smaller, [photo], tmp_path / 'out').colored for _ in range(2)] == [1, 0]
    # A result that somebody has worked on is an original.
    Image.open(result).convert('RGB').save(result)
    before = result.read_bytes()
    (failure,) = color_quietly(colorizer, [photo], tmp_path / 'out').failures
    assert 'not a result of jaxcolor' in failure and result.read_bytes() == before


def test_replacing_the_result_of_another_photo_is_said(colorizer, tmp_path):
    one, two = tmp_path / 'one' / 'a.png', tmp_path / 'two' / 'a.png'
    save(one, two)
    PHOTO.rotate(180).save(two)
    assert color_quietly(colorizer, [one], tmp_path / 'out').notes == []
    (note,) = color_quietly(colorizer, [two], tmp_path / 'out').notes
    assert note == f'{tmp_path}/out/a.png was the result of another photo, or of this one as it was before; it was replaced.'


# Names.


def test_names_that_differ_in_case_or_accents_get_results_of_their_own(tmp_path):
    names = ['a.png', 'A.png', 'a.PNG', 'b.bmp', 'b.bmp.png', 'é.png', 'é.png', 'D/x.png', 'd/x.png']
    save(*(tmp_path / 'in' / name for name in names))
    count = len(files_of(tmp_path / 'in'))  # fewer on a file system where case does not count
    plan = plan_outputs([tmp_path / 'in'], tmp_path / 'out')
    targets = [os.fspath(target) for _, target in plan.pairs]
    assert len(targets) == count == len({target.casefold() for target in targets})
    assert plan.problems == []
    assert any('b.bmp is written to' in note for note in plan.notes)
    assert dict(plan.pairs)[tmp_path / 'in' / 'b.bmp.png'] == tmp_path / 'out' / 'b.bmp.png'
    assert plan_outputs([tmp_path / 'in'], tmp_path / 'out') == plan


def test_the_note_on_a_name_says_the_other_one_as_it_is(tmp_path):
    save(tmp_path / 'a' / 'X.png', tmp_path / 'b' / 'x.png')
    plan = plan_outputs([tmp_path / 'a' / 'X.png', tmp_path / 'b' / 'x.png'], tmp_path / 'out')
    assert [target.name for _, target in plan.pairs] == ['X.png', 'x-2.png']
    said = f'{tmp_path}/b/x.png is written to {tmp_path}/out/x-2.png, because {tmp_path}/a/X.png is written to'
    assert plan.notes == [f'{said} {tmp_path}/out/X.png.']


def test_photos_of_one_name_and_photos_named_twice(tmp_path):
    save(tmp_path / 'one' / 'a.jpg', tmp_path / 'two' / 'a.jpg')
    plan = plan_outputs([tmp_path / 'one', tmp_path / 'one' / 'a.jpg', tmp_path / 'two' / 'a.jpg'], tmp_path / 'out')
    assert [target.name for _, target in plan.pairs] == ['a.jpg', 'a-2.jpg']
    assert len(plan.notes) == 1


def test_out_is_the_result_of_a_single_photo(trained, tmp_path, cli):
    save(tmp_path / 'a.png', tmp_path / 'b.png')
    result = tmp_path / 'new' / 'c.jpg'
    assert cli('colorize', f'--model={trained}', tmp_path / 'a.png', f'--out={result}')[0] == 0
    assert Image.open(result).format == 'JPEG'
    for arguments, part in [
        ([tmp_path / 'a.png', tmp_path / 'b.png', f'--out={tmp_path}/d.jpg'], 'names a file'),
        ([tmp_path, f'--out={tmp_path}/d.jpg'], 'names a file'),
        ([tmp_path / 'a.png', f'--out={tmp_path}/d.gif'], '.tiff'),
        ([tmp_path / 'a.png', f'--out={tmp_path}/b.png'], '--overwrite'),
        ([tmp_path / 'a.png', f'--out={tmp_path}/a.png'], 'would be overwritten'),
    ]:
        code, _, err = cli('colorize', f'--model={trained}', *arguments)
        assert_one_sentence(code, err, part)


# Folders.


def test_files_that_are_no_photos_are_counted(tmp_path):
    save(tmp_path / 'a.png')
    for name in ('a.txt', 'b.txt', 'c.mp4', 'README', '.hidden'):
        (tmp_path / name).write_text('x')
    plan = plan_outputs([tmp_path], tmp_path / 'out')
    (note,) = plan.notes
    assert note.startswith('4 files in') and '2 .txt' in note


@pytest.mark.parametrize('inputs', [['p'], ['p', 'none.jpg', 'empty']])
def test_folders_that_cannot_be_read(colorizer, tmp_path, monkeypatch, inputs):
    save(tmp_path / 'p' / 'a.png', tmp_path / 'p' / 'secret' / 'b.png')
    (tmp_path / 'empty').mkdir()
    forbid_folder(monkeypatch, 'secret')
    summary = color_quietly(colorizer, [tmp_path / name for name in inputs], tmp_path / 'out')
    assert summary.colored == 1
    assert len(summary.failures) == len(inputs)
    assert 'secret cannot be read (Permission denied)' in summary.failures[0]


def test_links_and_pipes(tmp_path):
    """Loops end, what blocks is not opened, folders behind links are searched."""
    save(tmp_path / 'p' / 'a.png', tmp_path / 'elsewhere' / 'b.png')
    (tmp_path / 'p' / 'other').symlink_to(tmp_path / 'elsewhere')
    for name in ('l1', 'l2'):
        (tmp_path / 'p' / name).symlink_to('.')
        (tmp_path / 'elsewhere' / name).symlink_to(tmp_path / 'p')
    (tmp_path / 'p' / 'self').symlink_to('self')
    os.mkfifo(tmp_path / 'p' / 'pipe.png')
    plan = plan_outputs([tmp_path / 'p'], tmp_path / 'out')
    assert [photo.name for photo, _ in plan.pairs] == ['a.png', 'b.png']
    assert plan.problems == []
    assert sum('lies in' in note for note in plan.notes) == 4
    assert sum('neither a file nor a folder' in note for note in plan.notes) == 1
    with pytest.raises(UserError, match='neither a file nor a folder'):
        plan_outputs([tmp_path / 'p' / 'pipe.png'], tmp_path / 'out')

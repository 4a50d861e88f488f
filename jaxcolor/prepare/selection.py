"""Which of a source's photos go into a set, and into which split: that follows from a photo's name alone."""

import collections
import dataclasses
import fnmatch
import hashlib

from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError

DEFAULT_SPLIT = 'train:0.9,validation:0.1'


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the bytes of a shard set, besides the photos; `jaxcolor prepare --help` explains each."""

    size: int = 256
    encoding: str = 'raw'
    source: str = 'auto'
    split: str | None = None
    classes: tuple[str, ...] | None = None
    limit_per_class: int | None = None
    fraction: float = 1.0
    repeat: str | None = None
    drop_duplicates: bool = False
    keep_gray: bool = False
    min_size: int = 32
    max_megapixels: float = 200
    max_file_mb: float = 256
    shard_photos: int = 1024

    def check(self):
        """Raises UserError where a value makes no sense."""
        for field in ('size', 'limit_per_class', 'min_size', 'max_megapixels', 'max_file_mb', 'shard_photos'):
            value = getattr(self, field)
            if value is not None and not value >= 1:
                raise UserError(f'--{field.replace("_", "-")} must be at least 1, not {value}')
        if not 0 < self.fraction <= 1:
            raise UserError(f'--fraction must lie in (0, 1], not {self.fraction}')
        if self.encoding not in shards.ENCODINGS:
            raise UserError(f'there is no encoding {self.encoding!r}; choose one of {", ".join(shards.ENCODINGS)}')
        parse_split(self.split or DEFAULT_SPLIT)
        parse_repeat(self.repeat)

    @property
    def max_bytes(self):
        """`max_file_mb` in bytes."""
        return int(self.max_file_mb * 1e6)


def parse_split(text):
    """'train:0.9,validation:0.1' -> {'train': 0.9, 'validation': 0.1}; raises UserError."""
    try:
        split = {name.strip(): float(part) for name, part in (field.split(':') for field in text.split(','))}
    except ValueError:
        split = {}
    good = all(name.isidentifier() and part > 0 for name, part in split.items())
    if not good or not abs(sum(split.values()) - 1) < 1e-6:
        raise UserError(f'--split={text} is not understood; write names and parts that add up to 1, as {DEFAULT_SPLIT}')
    return split


def parse_repeat(text):
    """How often photos come in the split `train`; raises UserError.

    Of several keys that fit a photo its own name counts, then the first pattern of names, then its class; of a key that
    comes again the last.

    Args:
        text: '' or None for no repetition, or names, patterns of names, classes: 'bird/7.jpg:0,bird/*-wild.jpg:2,flower:5'.

    Returns:
        {'bird/7.jpg': 0, 'bird/*-wild.jpg': 2, 'flower': 5}.
    """
    try:
        times = {label: int(count) for label, count in (field.rsplit(':', 1) for field in (text or '').split(',') if field)}
    except ValueError:
        times = {'': -1}
    if not all(count >= 0 for count in times.values()):
        raise UserError(f'--repeat={text} is not understood; write what comes how often, as flower:5,bird:2')
    return times


def _unit_hash(name, salt):
    """A name -> a number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(name.encode(), digest_size=7, salt=salt).digest()
    return int.from_bytes(digest) / 2**56


def split_by_name(name, split):
    """The split that a photo's name falls into."""
    draw = _unit_hash(name, b'split')
    for key, part in split.items():
        draw -= part
        if draw < 0:
            return key
    return key  # the parts may add up to a rounding error less than 1


def select(photos, options):
    """The photos that the options ask for, each with its split; a duplicate is refused.

    What `repeat` names comes several times in a row in the split `train`, or not at all: so rare photos are oversampled.

    Raises:
        UserError: when all have been seen, that none was what `repeat` names.
    """
    split, repeat = parse_split(options.split or DEFAULT_SPLIT), parse_repeat(options.repeat)
    patterns = [key for key in repeat if set(key) & set('*?[')]
    taken, contents, absent = collections.Counter(), set(), set(repeat)
    for photo in photos:
        if options.classes is not None and photo.label not in options.classes:
            continue
        if options.fraction < 1 and _unit_hash(photo.name, b'fraction') >= options.fraction:
            continue
        if options.split:
            photo.split = None
        if options.limit_per_class and not photo.refused:
            if taken[photo.split, photo.label] == options.limit_per_class:
                continue
            taken[photo.split, photo.label] += 1
        if options.drop_duplicates and not photo.refused:
            photo.refused = _duplicate(photo, contents, options)
        photo.split = photo.split or split_by_name(photo.name, split)
        keys = photo.name, *patterns, photo.label
        named = [key for key in keys if key in repeat and (key not in patterns or fnmatch.fnmatchcase(photo.name, key))]
        absent.difference_update(named)
        times = repeat[named[0]] if named and photo.split == 'train' and not photo.refused else 1
        for _ in range(times):
            yield dataclasses.replace(photo)  # each is numbered and kept on its own
    if absent:
        raise UserError(f'--repeat: there is no photo of {", ".join(sorted(absent))}; mend the name')


def _duplicate(photo, contents, options):
    """The reason to refuse a photo whose content came up before; `contents` grows by some 100 bytes a photo."""
    try:
        data = photo.data if photo.data is not None else photo.load(options.max_bytes)
    except RejectedError:
        return None  # it will be rejected for that
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest in contents:
        return 'duplicate: the same content came up before'
    contents.add(digest)
    return None

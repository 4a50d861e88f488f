"""Selects a source's photos and assigns each to a split, by its name alone."""

import collections
import dataclasses
import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping

from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError
from jaxcolor.prepare.sources import Photo

DEFAULT_SPLIT = 'train:0.9,validation:0.1'


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that, with the photos, decide the bytes of a shard set. `jaxcolor prepare --help` explains each."""

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

    def check(self) -> None:
        """Raises UserError for a value that is out of range or cannot be parsed."""
        for field in ('size', 'limit_per_class', 'min_size', 'max_megapixels', 'max_file_mb', 'shard_photos'):
            value = getattr(self, field)
            if value is not None and not value >= 1:
                raise UserError(f'--{field.replace("_", "-")} must be at least 1, not {value}')
        if not 0 < self.fraction <= 1:
            raise UserError(f'--fraction must be in (0, 1], not {self.fraction}')
        if self.encoding not in shards.ENCODINGS:
            raise UserError(f'there is no encoding {self.encoding!r}; choose one of {", ".join(shards.ENCODINGS)}')
        parse_split(self.split or DEFAULT_SPLIT)
        parse_repeat(self.repeat)

    @property
    def max_bytes(self) -> int:
        """`max_file_mb` in bytes."""
        return int(self.max_file_mb * 1e6)


def parse_split(text: str) -> dict[str, float]:
    """Parses 'train:0.9,validation:0.1' to {'train': 0.9, 'validation': 0.1}.

    Raises:
        UserError: it does not parse, or the fractions do not add up to 1.
    """
    try:
        split = {name.strip(): float(fraction) for name, fraction in (entry.split(':') for entry in text.split(','))}
    except ValueError:
        split = {}
    is_valid = all(name.isidentifier() and fraction > 0 for name, fraction in split.items())
    if not is_valid or not abs(sum(split.values()) - 1) < 1e-6:
        raise UserError(f'--split={text} is invalid; give names and fractions that add up to 1, such as {DEFAULT_SPLIT}')
    return split


def parse_repeat(text: str | None) -> dict[str, int]:
    """Parses how often photos are repeated in the split `train`.

    If several keys match a photo, its own name takes precedence, then the first pattern, then its class. If a key is given
    twice, the last count applies.

    Args:
        text: names, patterns of names or classes with counts, 'bird/7.jpg:0,bird/*-wild.jpg:2,flower:5'; '' or None for
            no repetition.

    Returns:
        {'bird/7.jpg': 0, 'bird/*-wild.jpg': 2, 'flower': 5}.

    Raises:
        UserError: it does not parse, or a count is negative.
    """
    entries = [entry for entry in (text or '').split(',') if entry]
    try:
        counts = {key: int(count) for key, count in (entry.rsplit(':', 1) for entry in entries)}
    except ValueError:
        counts = {'': -1}
    if not all(count >= 0 for count in counts.values()):
        raise UserError(f'--repeat={text} is invalid; give names and counts, such as flower:5,bird:2')
    return counts


def _unit_hash(name, salt):
    """Hashes a name to a number in [0, 1)."""
    digest = hashlib.blake2b(name.encode(), digest_size=7, salt=salt).digest()
    return int.from_bytes(digest) / 2**56


def split_by_name(name: str, split: Mapping[str, float]) -> str:
    """The split that a hash of the photo's name selects.

    Args:
        name: of the photo.
        split: {split: fraction}, as from `parse_split`.
    """
    threshold = _unit_hash(name, b'split')
    for key, fraction in split.items():
        threshold -= fraction
        if threshold < 0:
            return key
    return key  # the fractions may add up to slightly less than 1


def select(photos: Iterable[Photo], options: Options) -> Iterator[Photo]:
    """Yields the photos that the options select, with their split. Duplicates are yielded as rejected.

    Photos that `repeat` names are yielded so many times in a row if they are in the split `train`, to oversample rare ones.

    Raises:
        UserError: at the end, if an entry of `repeat` has matched no photo.
    """
    split, repeat = parse_split(options.split or DEFAULT_SPLIT), parse_repeat(options.repeat)
    patterns = [key for key in repeat if set(key) & set('*?[')]
    counts: collections.Counter[tuple[str | None, str | None]] = collections.Counter()  # by the source's split, class
    digests: set[bytes] = set()  # of contents, some 100 bytes a photo
    unmatched = set(repeat)
    for photo in photos:
        if options.classes is not None and photo.class_name not in options.classes:
            continue
        if options.fraction < 1 and _unit_hash(photo.name, b'fraction') >= options.fraction:
            continue
        if options.split:
            photo.split = None
        if options.limit_per_class and not photo.rejected:
            if counts[photo.split, photo.class_name] == options.limit_per_class:
                continue
            counts[photo.split, photo.class_name] += 1
        if options.drop_duplicates and not photo.rejected and _is_duplicate(photo, digests, options.max_bytes):
            photo.rejected = 'duplicate: the same content came up before'
        photo.split = photo.split or split_by_name(photo.name, split)
        keys = photo.name, *patterns, photo.class_name  # in order of precedence
        matches = [key for key in keys if key in repeat and (key not in patterns or fnmatch.fnmatchcase(photo.name, key))]
        unmatched.difference_update(matches)
        copies = repeat[matches[0]] if matches and photo.split == 'train' and not photo.rejected else 1
        for _ in range(copies):
            yield dataclasses.replace(photo)  # each copy is labeled and spooled on its own
    if unmatched:
        raise UserError(f'--repeat: there is no photo of {", ".join(sorted(unmatched))}; correct the name')


def _is_duplicate(photo, digests, max_bytes):
    """Whether a photo's content came up before; adds its digest to `digests`."""
    try:
        digest = hashlib.blake2b(photo.read(max_bytes), digest_size=16).digest()
    except RejectedError:
        return False  # it is rejected for that when it is decoded
    if digest in digests:
        return True
    digests.add(digest)
    return False

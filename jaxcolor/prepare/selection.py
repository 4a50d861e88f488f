"""Selects a source's photos and assigns each to a split, by its name alone."""

import collections
import dataclasses
import fnmatch
import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jaxcolor.data import shards
from jaxcolor.errors import UserError
from jaxcolor.prepare.decode import RejectedError
from jaxcolor.prepare.sources import SPLITS, Photo

DEFAULT_SPLIT = 'train:0.9,validation:0.1'


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that, with the photos, decide the bytes of a shard set. `jaxcolor prepare --help` explains each."""

    size: int = 256
    encoding: str = 'raw'
    source: str = 'auto'
    split: str | None = None
    classes: tuple[str, ...] | None = None
    limit: str | None = None
    limit_per_class: int | None = None
    fraction: float = 1.0
    repeat: str | None = None
    leave_out: str | None = None
    drop_duplicates: bool = False
    keep_gray: bool = False
    min_size: int = 32
    max_megapixels: float = 200
    max_file_mb: float = 256
    shard_photos: int = 1024

    def check(self) -> None:
        """Raises UserError for a value that is out of range or cannot be parsed."""
        whole = ('size', 'limit_per_class', 'min_size', 'shard_photos')
        for field in (*whole, 'fraction', 'max_megapixels', 'max_file_mb'):
            value = getattr(self, field)
            if value is not None and not isinstance(value, int if field in whole else (int, float)):
                kind = 'a whole number' if field in whole else 'a number'
                raise UserError(f'--{field.replace("_", "-")} must be {kind}, not {value!r}')
        for field in ('encoding', 'source', 'split', 'limit', 'repeat'):
            if not isinstance(getattr(self, field), (str, type(None))):
                raise UserError(f'--{field} must be a text, not {getattr(self, field)!r}')
        for field in (*whole, 'max_megapixels', 'max_file_mb'):
            value = getattr(self, field)
            if value is not None and not value >= 1:
                raise UserError(f'--{field.replace("_", "-")} must be at least 1, not {value}')
        if not 0 < self.fraction <= 1:
            raise UserError(f'--fraction must be in (0, 1], not {self.fraction}')
        if self.encoding not in shards.ENCODINGS:
            raise UserError(f'there is no encoding {self.encoding!r}; choose one of {", ".join(shards.ENCODINGS)}')
        parse_split(self.split or DEFAULT_SPLIT)
        parse_limit(self.limit)
        parse_repeat(self.repeat)

    @property
    def max_bytes(self) -> int:
        """`max_file_mb` in bytes."""
        return int(self.max_file_mb * 1e6)


def parse_split(text: str) -> tuple[dict[str, float], dict[str, str]]:
    """Parses 'train:0.8,validation:0.2,test:test' to ({'train': 0.8, 'validation': 0.2}, {'test': 'test'}).

    Returns:
        ({split: fraction}, {split of the source: split that its photos stay together in}).

    Raises:
        UserError: it does not parse, or the fractions do not add up to 1.
    """
    fractions, kept, is_valid = {}, {}, True
    for entry in text.split(','):
        name, _, value = (word.strip() for word in entry.partition(':'))
        is_valid &= name.isidentifier()
        if value in SPLITS.values():
            kept[value] = name
            continue
        try:
            fractions[name] = float(value)
        except ValueError:
            is_valid = False
    is_valid &= all(fraction > 0 for fraction in fractions.values()) and abs(sum(fractions.values()) - 1) < 1e-6
    if not is_valid:
        raise UserError(
            f'--split={text} is invalid; give names and fractions that add up to 1, such as {DEFAULT_SPLIT}, and, to keep '
            "photos together, the source's splits, such as test:test"
        )
    return fractions, kept


def parse_limit(text: str | None) -> dict[str, int]:
    """Parses 'train:1000,test:200' to {'train': 1000, 'test': 200}, and '1000' to {'': 1000}: for every split.

    Raises:
        UserError: it does not parse, or a number is negative.
    """
    try:
        entries = [entry.rpartition(':') for entry in (text or '').split(',') if entry]
        limits = {name.strip(): int(number) for name, _, number in entries}
    except ValueError:
        limits = {'': -1}
    if min(limits.values(), default=0) < 0 or ('' in limits and len(limits) > 1):
        raise UserError(
            f'--limit={text} is invalid; give a number of photos, or names and numbers, such as train:1000,test:200'
        )
    return limits


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


def read_names(path: str | os.PathLike) -> list[str]:
    """Reads names of photos, or patterns, from a file, one a line; empty lines and those that begin with # are skipped.

    Raises:
        UserError: it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--leave-out: {path} cannot be read ({error}); give a text file with a name a line') from None
    return [name for line in lines if (name := line.strip()) and not name.startswith('#')]


def _leave_out(photos, names):
    """Yields the photos but those of `names`, which may be patterns. Raises UserError for a name that no photo has."""
    patterns = [name for name in names if set(name) & set('*?[')]
    unmatched = set(names)
    for photo in photos:
        matches = [key for key in patterns if fnmatch.fnmatchcase(photo.name, key)]
        matches += [photo.name] if photo.name in names else []
        unmatched.difference_update(matches)
        if not matches:
            yield photo
    if unmatched:
        raise UserError(f'--leave-out: there is no photo of {", ".join(sorted(unmatched)[:5])}; correct the name')


def _unit_hash(name, salt):
    """Hashes a name to a number in [0, 1)."""
    digest = hashlib.blake2b(name.encode(), digest_size=7, salt=salt).digest()
    return int.from_bytes(digest) / 2**56


def split_by_name(name: str, split: Mapping[str, float]) -> str:
    """The split that a hash of the photo's name selects.

    Args:
        name: of the photo.
        split: {split: fraction}, the first of `parse_split`.
    """
    threshold = _unit_hash(name, b'split')
    for key, fraction in split.items():
        threshold -= fraction
        if threshold < 0:
            return key
    return key  # the fractions may add up to slightly less than 1


def _choose(photos, options):
    """Yields the photos that the options but `limit` choose by their names, with their split."""
    fractions, kept = parse_split(options.split or DEFAULT_SPLIT)
    counts = collections.Counter()  # by the source's split, class
    for photo in _leave_out(photos, frozenset(options.leave_out.split('\n')) if options.leave_out else ()):
        if options.classes is not None and photo.class_name not in options.classes:
            continue
        if options.fraction < 1 and _unit_hash(photo.name, b'fraction') >= options.fraction:
            continue
        if options.split:
            photo.split = kept.get(photo.split)
        if options.limit_per_class and not photo.rejected:
            if counts[photo.split, photo.class_name] == options.limit_per_class:
                continue
            counts[photo.split, photo.class_name] += 1
        photo.split = photo.split or split_by_name(photo.name, fractions)
        yield photo


def largest_hashes(photos: Iterable[Photo], options: Options) -> dict[str, float]:
    """What `options.limit` keeps of each split: its photos of the smallest hashes, whose largest one is given.

    So the photos are drawn at random from all of the split, but the same ones every time.

    Args:
        photos: all of the source, which is read once for this alone.
        options: those of `select`.

    Returns:
        {split: hash in [0, 1)}, of the splits that have a limit; -1 where it is 0.

    Raises:
        UserError: a split that the limit names has no photos.
    """
    limits = parse_limit(options.limit)  # '' stands for any split
    smallest: dict[str, list[float]] = {name: [] for name in limits if name}  # negated, in a heap
    for photo in _choose(photos, options):
        limit = limits.get(photo.split, limits.get(''))
        if limit is None or photo.rejected:
            continue
        heap = smallest.setdefault(photo.split, [])
        heapq.heappush(heap, -_unit_hash(photo.name, b'limit'))
        if len(heap) > max(1, limit):
            heapq.heappop(heap)
    if empty := [name for name, heap in smallest.items() if not heap]:
        raise UserError(f'--limit: there are no photos of the split {", ".join(empty)}; correct the name')
    return {name: -heap[0] if limits.get(name, limits.get('')) else -1.0 for name, heap in smallest.items()}


def select(photos: Iterable[Photo], options: Options, largest: Mapping[str, float] | None = None) -> Iterator[Photo]:
    """Yields the photos that the options select, with their split. Duplicates are yielded as rejected.

    Photos that `repeat` names are yielded so many times in a row if they are in the split `train`, to oversample rare ones.

    Args:
        photos: all of the source.
        options: all but `limit` are applied.
        largest: of `largest_hashes`, where there is a limit.

    Raises:
        UserError: at the end, if an entry of `repeat` has matched no photo.
    """
    repeat, largest = parse_repeat(options.repeat), largest or {}
    patterns = [key for key in repeat if set(key) & set('*?[')]
    digests: set[bytes] = set()  # of contents, some 100 bytes a photo
    unmatched = set(repeat)
    for photo in _choose(photos, options):
        if not photo.rejected and _unit_hash(photo.name, b'limit') > largest.get(photo.split, 1.0):
            continue
        if options.drop_duplicates and not photo.rejected and _is_duplicate(photo, digests, options.max_bytes):
            photo.rejected = 'duplicate: the same content came up before'
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

"""Which photos are colored, and where their results go: never onto a photo, never two to one file."""

import collections
import io
import os
import unicodedata
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jaxcolor import files
from jaxcolor.errors import UserError, counted, ordinary_errors, printable
from jaxcolor.inference.photos import OUTPUT_FORMATS
from jaxcolor.inference.tags import read_tag
from jaxcolor.prepare.decode import FORMATS, SUFFIXES, is_photo, pillow_unguarded


class Plan(NamedTuple):
    """The photos, and what is to be said of the other files."""

    pairs: list[tuple[Path, Path]]  # (photo, path of its result)
    problems: list[str]  # a sentence each: what cannot be colored
    notes: list[str]  # a sentence each: what the user may want to know


@pillow_unguarded()  # results, too, may have more pixels than Pillow's own limit
def plan_outputs(inputs: Iterable[str | PathLike], out: str | PathLike) -> Plan:
    """Lists the photos and where their results go.

    Args:
        inputs: photos and folders, which are searched for photos; the folder `out` is not. Results of earlier runs are no
            photos, unless nothing else is named.
        out: folder for the results, or the result of a single photo. Photos of a folder keep their paths below it; what
            the format of the name cannot hold becomes PNG. Of two results of one name, be it in letters of another case,
            the second is renamed.

    Raises:
        UserError: there are no photos, or `out` is a file but no result of a single photo.
    """
    photos, out = [Path(path) for path in inputs], Path(out)
    plan = Plan([], [], [])
    if _is_file_name(out, photos):
        pairs = [(photos[0], out)]
    else:
        pairs = []
        results = {path for path in photos if os.path.isfile(path) and read_tag(path)}
        are_meant = len(results) == len(photos)
        if results and not are_meant:  # a shell's * names them, too
            plan.notes.append(_left_out(len(results), 'among the photos'))
        for path in photos:
            if os.path.isdir(path):
                pairs += _photos_of_folder(path, out, plan, is_alone=len(photos) == 1)
            elif path in results and not are_meant:
                continue
            elif os.path.isfile(path):
                pairs.append((path, out / path.name))
            else:
                problem = (
                    'is neither a file nor a folder' if os.path.exists(path) else 'does not exist, or cannot be reached'
                )
                plan.problems.append(f'{path} {problem}.')
        pairs = _without_clashes(pairs, plan)
    photo_of = {identity: photo for photo, _ in pairs if (identity := _identity(photo))}
    for photo, target in pairs:
        if overwritten := photo_of.get(_identity(target)):
            by = f' by the result of {photo}' if overwritten != photo else ''
            plan.problems.append(f'{overwritten} would be overwritten{by}; name another folder with --out.')
        else:
            plan.pairs.append((photo, target))
    if not plan.pairs and len(plan.problems) == 1:
        raise UserError(printable(plan.problems[0]))
    return plan


def _is_file_name(out, inputs):
    """Whether `out` names the result of the one photo. Raises UserError if it cannot."""
    if os.path.isdir(out) or (out.suffix.lower() not in SUFFIXES and not os.path.exists(out)):
        return False
    if len(inputs) != 1 or os.path.isdir(inputs[0]):
        raise UserError(f'--out={out} names a file, which only a single photo can be written to; name a folder.')
    if out.suffix.lower() not in OUTPUT_FORMATS:
        raise UserError(f'--out={out}: results can be written as {", ".join(sorted(OUTPUT_FORMATS))}.')
    return os.path.isfile(inputs[0])


def _photos_of_folder(folder, out, plan, is_alone):
    """[(photo, wanted path of its result)]; what is left out is added to the plan's problems and notes."""
    skip = out.stat() if os.path.isdir(out) else None
    if _is_same_file(folder, out):
        found = [file.path for file in files.walk(folder) if not file.problem and is_photo(file.path)]
        if not is_alone and all(read_tag(path) for path in found):  # a shell's * names it, too
            plan.notes.append(f'{folder} is the folder of the results; it was left out.')
        else:
            plan.problems.append(f'{folder} is also --out, so photos would be overwritten; name another folder with --out.')
        return []
    pairs, others, results, lost = [], collections.Counter(), 0, 0
    for file in files.walk(folder, skip):
        if file.problem:
            (plan.problems if file.is_lost else plan.notes).append(f'{file.path} {file.problem}; it was left out.')
            lost += file.is_lost
        elif not is_photo(file.path):
            others[Path(file.path).suffix.lower() or 'no suffix'] += 1
        elif read_tag(file.path):
            results += 1
        else:
            pairs.append((Path(file.path), out.joinpath(*file.parts)))
    if others:
        kinds = ', '.join(f'{count} {suffix}' for suffix, count in others.most_common(5))
        count = sum(others.values())
        what = 'is no photo, by its name' if count == 1 else 'are no photos, by their names'
        plan.notes.append(f'{counted(count, "file")} in {folder} {what} ({kinds}).')
    if results and not pairs and is_alone:
        plan.problems.append(f'the folder {folder} holds results of jaxcolor alone; they are colored only by their names.')
    elif results:
        plan.notes.append(_left_out(results, f'in {folder}'))
    elif not pairs and not lost:
        plan.problems.append(f'the folder {folder} holds no photos ({", ".join(sorted(SUFFIXES))}).')
    return pairs


def _left_out(count, where):
    return f'{counted(count, "result")} of earlier runs {where} {"was" if count == 1 else "were"} left out.'


def _without_clashes(pairs, plan):
    """Makes the paths of results differ, even where case does not count; results that keep their photo's name come first."""
    wanted = [(photo, path.with_name(result_name(photo, path.name))) for photo, path in pairs]
    keeps_name = [path == target for (_, path), (_, target) in zip(pairs, wanted, strict=True)]
    owner: dict[str, tuple[Path, Path]] = {}  # (the photo, its result)
    target_of: dict[int, Path] = {}
    for index in sorted(range(len(pairs)), key=lambda index: not keeps_name[index]):
        photo, target = wanted[index]
        number, free = 1, target
        while (other := owner.get(_key(free))) is not None and not _is_same_file(other[0], photo):
            number += 1
            free = target.with_name(files.fit_name(target.stem, f'-{number}{target.suffix}'))
        if other is not None:
            continue  # the same photo, named twice
        if not keeps_name[index] and photo.suffix.lower() in OUTPUT_FORMATS:
            plan.notes.append(f'{photo} holds transparency or frames, which its name does not allow; it becomes a PNG.')
        if free != target:
            first, result = owner[_key(target)]
            plan.notes.append(f'{photo} is written to {free}, because {first} is written to {result}.')
        owner[_key(free)] = photo, free
        target_of[index] = free
    return [(wanted[index][0], target_of[index]) for index in sorted(target_of)]


def _key(path):
    """Equal for paths that are one file on some file systems."""
    return unicodedata.normalize('NFC', os.fspath(path)).casefold()


def result_name(photo: str | PathLike | bytes, name: str) -> str:
    """What the result of a photo is called.

    Args:
        photo: its file, or the bytes of it.
        name: of the file.

    Returns:
        The name; with .png appended if its format cannot be written or cannot hold what the file holds.
    """
    suffix = Path(name).suffix.lower()
    if suffix in OUTPUT_FORMATS and not (OUTPUT_FORMATS[suffix] == 'JPEG' and _needs_png(photo)):
        return name
    return files.fit_name(name, '.png')


@pillow_unguarded()
def _needs_png(photo):
    """Whether a file with a JPEG's name holds transparency or an animation."""
    try:
        with ordinary_errors(), io.BytesIO(photo) if isinstance(photo, bytes) else open(photo, 'rb') as file:
            if file.read(2) == b'\xff\xd8':
                return False
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                return image.has_transparency_data or getattr(image, 'n_frames', 1) > 1
    except Exception:  # reading the photo reports what is wrong with it
        return False


def _identity(path):
    """What tells apart files and folders, whatever their names; None of what is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_same_file(a, b):
    """Whether two paths are one file or folder, also by other names."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False

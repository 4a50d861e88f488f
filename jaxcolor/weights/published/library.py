"""Published networks by name, and published files by path: fetched, checked, converted once to exported models.

Files lie in the cache folder (`runtime.cache`), what they were converted to in its folder `published`.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import filelock
import numpy as np
import pooch
from ml_collections import ConfigDict

from jaxcolor import config as fields
from jaxcolor.errors import UserError
from jaxcolor.runtime import cache
from jaxcolor.tasks.state import TrainState
from jaxcolor.weights import store
from jaxcolor.weights.published import convert
from jaxcolor.weights.published.table import PUBLISHED, Published
from jaxcolor.weights.weight_files import brief

# By network, the side of the square that the published one sees; the shorter side of what jaxcolor gives it.
SIDES = {'eccv16': 256, 'siggraph17': 256, 'iizuka': 224, 'ddcolor': 512, 'deoldify': 560}
_VIDEO_SIDE = 336  # of deoldify-video
# A name that several published files share, so that it tells none of them.
_SHARED_NAME = 'pytorch_model.bin'
_MAX_REASON = 120  # letters of why a download failed


def model_folder(model: str | os.PathLike) -> Path:
    """The folder of a model: of a published name or file it is that of its conversion, of all others `store.model_folder`.

    The first use of a name may download its file. At the first use it is said on stderr what was found in the file, and the
    license; one that forbids commercial use at every use, of an imported file and of what was trained from it, too.

    Raises:
        UserError: the file cannot be downloaded, is another than the published one, or does not fit.
    """
    folder = _find_folder(model)
    if notice := notice_of(folder):
        _say(notice)
    return folder


def notice_of(folder: Path) -> str:
    """A sentence to say whenever a model is used, '' for most.

    Args:
        folder: an exported model, which holds the sentence, or a run directory: its weights are under the license of those
            that its training started from.

    Raises:
        UserError: the exported model cannot be read.
    """
    if (folder / store.WEIGHTS).exists():
        return store.read_metadata(folder).get('notice', '')
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        start, network = config['train']['init_from'], config['model']['name']
    except (OSError, ValueError, TypeError, LookupError):  # what is wrong with it is said where it is read
        return ''
    return start and (_notice(str(start).partition('-')[0]) or _notice(network))


def _find_folder(model):
    name = str(model)
    if name in store.model_names() or name not in PUBLISHED:
        return _of_file(Path(model)) if os.path.isfile(model) else store.model_folder(model)
    published, folder = PUBLISHED[name], _folder(name)
    with _conversion_of(folder) as is_first:
        if is_first:
            notes = write_model(find_file(published), folder, precision='float32', summary=published.title)
            for sentence in [*notes, published.terms]:
                _say(sentence)
    return folder


@contextlib.contextmanager
def _conversion_of(folder):
    """Yields whether a folder is to be made, while other processes wait for it."""
    if store.is_exported(folder):
        yield False
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f'.{folder.name}.lock'))
        lock.acquire()
    except OSError as error:
        raise UserError(f'{folder.parent} cannot be written ({error.strerror}).') from None
    try:
        yield not store.is_exported(folder)
    finally:
        lock.release()


def is_converted(name: str) -> bool:
    """Whether a published network needs no download: it was used before."""
    return store.is_exported(_folder(name))


def _folder(name):
    return cache.folder() / 'published' / name


@functools.cache
def _of_file(path):
    """The folder of a file's conversion, by its content."""
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    folder = _folder(f'sha256-{digest[:32]}')
    with _conversion_of(folder) as is_first:
        if is_first:
            for sentence in write_model(path, folder, precision='float32', summary=f'From {path.name}.'):
                _say(sentence)
    return folder


@functools.cache
def _say(sentence):
    """Once in a process."""
    print(f'jaxcolor: note: {sentence}', file=sys.stderr)


def _notice(network):
    """What to say whenever weights of a network are used, whose license forbids commercial use; '' for others."""
    for each in PUBLISHED.values():
        if each.noncommercial and each.name.partition('-')[0] == network:
            terms = f'{each.license}, {each.license_url}, which forbids commercial use'
            return f'the published weights of {network} are under {terms}.'
    return ''


def find_file(published: Published) -> Path:
    """The file of a published network: one in the cache folder, else it is downloaded to it. It is checked in either case.

    Raises:
        UserError: it cannot be downloaded, or is another than the published one.
    """
    folder = cache.folder()
    url_name = re.sub(r'\?.*', '', published.url).rpartition('/')[2]
    suffix = Path(url_name).suffix
    names = [f'{published.name}{suffix}', *([] if url_name == _SHARED_NAME else [url_name])]
    for path in (folder / name for name in names):
        if path.exists():
            _check(path, published)
            return path
    try:
        path = Path(pooch.retrieve(published.url, _known_hash(published), names[0], folder, progressbar=True))
    except (OSError, ValueError) as error:  # OSError includes those of requests; ValueError is a wrong checksum
        reason = brief(error, _MAX_REASON)
        raise UserError(
            f'{published.name} could not be downloaded ({reason}): put {published.url} into {folder} as {names[0]}, or give '
            'the path of the file.'
        ) from error
    try:
        _check(path, published)
    except UserError:
        path.unlink(missing_ok=True)
        raise
    return path


def _known_hash(published):
    """What pooch checks: whole digests only."""
    if len(published.sha256) == 64:
        return f'sha256:{published.sha256}'
    return f'md5:{published.md5}' if published.md5 else None


def _check(path, published):
    """Raises UserError if a file has another digest than the published one."""
    for algorithm, expected in (('sha256', published.sha256), ('md5', published.md5)):
        if expected and not (found := pooch.file_hash(path, algorithm)).startswith(expected):
            raise UserError(
                f'{path} is not the published file of {published.name}: its {algorithm.upper()} is {found}, not {expected}'
                f'{"..." if len(expected) in (8, 16) else ""}; fetch it again, or give its path to use it all the same.'
            )


def write_model(
    source: str | os.PathLike, out: str | os.PathLike, precision: str = 'float16', summary: str = ''
) -> list[str]:
    """Converts a published file to an exported model, which appears whole or not at all.

    Args:
        source: of the file, told by its content.
        out: the folder of the model, whose name becomes the model's; a model that is there is replaced.
        precision: of its kernels, 'float16' or 'float32'.
        summary: a line that `jaxcolor models` shows.

    Returns:
        Sentences on what was found in the file and what was left out.

    Raises:
        UserError: the file cannot be read, or does not fit; the folder holds something else, or cannot be written.
    """
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and (store.is_exported(out) or not any(out.iterdir()))):
        raise UserError(f'{out} holds something else than an exported model; name a new folder.')
    converted = convert(source)
    config = fields.get_config()
    config.name = out.name
    config.model, config.task = ConfigDict(converted.model), ConfigDict(converted.task)
    config.data.crop = _VIDEO_SIDE if out.name == 'deoldify-video' else SIDES[config.model.name]
    # What `train --config=FOLDER` starts with, to go on from here.
    config.optimizer.update({'name': 'adam', 'schedule': 'cosine', 'learning_rate': 1e-5})
    config.train.update({'batch_size': 16, 'steps': 2_000, 'eval_every': 500, 'checkpoint_every': 500, 'log_every': 10})
    key = np.zeros(2, np.uint32)
    state = TrainState(np.int32(0), converted.params, converted.model_state, (), key)  # type: ignore[arg-type]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix='.') as temporary:
            new = Path(temporary, out.name)
            store.write(new, config, state, summary, precision, _notice(config.model.name))
            if out.exists():
                shutil.rmtree(out)
            os.replace(new, out)
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror}).') from None
    return converted.notes

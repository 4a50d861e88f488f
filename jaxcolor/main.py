"""Command: train a network as a config says, or evaluate what was trained.

    python -m jaxcolor.main --config=configs/ltbc.py [--config.train.batch_size=64 ...] [--workdir=RUN]
        [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]
    python -m jaxcolor.main --mode=evaluate --workdir=RUN [--data=SHARDS] [--splits=validation,test]
    python -m jaxcolor.main --mode=evaluate --workdir=RUN --protocol=val5k --photos=FOLDER [--lpips]
    python -m jaxcolor.main --mode=evaluate --workdir=RUN --compare=RUN,... [--data=SHARDS] [--splits=test]
    python -m jaxcolor.main --mode=import --config=configs/ltbc_pytorch.py --weights=PEER.ckpt [--workdir=RUN]
"""

import ast
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from jaxcolor.runtime import cluster
from jaxcolor.errors import UserError, one_line_errors

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe: configs/NAME.py or configs/NAME.py:VARIANT.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'import'], 'What to do.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'The run directory; runs/NAME-OF-THE-CONFIG by default.')
_DATA = flags.DEFINE_string('data', '', 'evaluate: the shard set; by default the one that the run was trained on.')
_SPLITS = flags.DEFINE_list('splits', ['validation'], 'evaluate: the splits, separated by commas.')
_WEIGHTS = flags.DEFINE_string('weights', '', 'import: a checkpoint of the PyTorch reimplementation of ltbc_pytorch.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT of process 0, where there are several; under Slurm and Open MPI it is found.'
)
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes train together; goes with process_id.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0 on.')
_COMPARE = flags.DEFINE_list('compare', [], 'evaluate: other run directories, for a page with all of them side by side.')
_LPIPS = flags.DEFINE_bool('lpips', False, 'evaluate: measure the perceptual distance, too (extra [lpips]).')
_FID = flags.DEFINE_string('fid', '', "evaluate: Inception v3's weights (pytorch-fid's or torchvision's), for the FID.")
_PROTOCOL = flags.DEFINE_string('protocol', '', 'evaluate: val5k, val50k, ctest10k or native, of the folder --photos.')
_PHOTOS = flags.DEFINE_string('photos', '', 'evaluate: the folder of photos of --protocol.')
_PHOTO_LIST = flags.DEFINE_string('photo_list', '', 'evaluate: a file that names the photos to take, one a line.')
_STEP = flags.DEFINE_integer('step', None, 'evaluate: the checkpoint; by default the best by validation loss.')


@one_line_errors
def main(argv):
    """Parses, joins the devices, dispatches."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]!r} is no flag; write --config=configs/NAME.py, --config.SECTION.FIELD=VALUE.')
    config = _read_config()
    workdir = _WORKDIR.value or (config and f'runs/{config.name}')
    if workdir is None:
        raise UserError('name a recipe, --config=configs/ltbc.py, or a run directory, --workdir=RUN --mode=evaluate.')
    place = cluster.find_place(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    # Only now: JAX starts its devices when it is used, and a mistake in the flags should not wait for that.
    from jaxcolor.runtime.cache import keep_compiled

    keep_compiled()
    if _MODE.value == 'evaluate':
        from jaxcolor.evaluation.compare import compare_runs
        from jaxcolor.evaluation.evaluator import evaluate_protocol, evaluate_run

        if place.count > 1:
            cluster.join(place, heartbeat=30)
        with cluster.leaves_at_once(place):
            judges = {'lpips': _LPIPS.value, 'fid': _FID.value}
            if _COMPARE.value:
                print(compare_runs([workdir, *_COMPARE.value], _DATA.value, _SPLITS.value[0], **judges))
            elif _PROTOCOL.value:
                evaluate_protocol(workdir, _PROTOCOL.value, _PHOTOS.value, _PHOTO_LIST.value, _STEP.value, **judges)
            else:
                evaluate_run(workdir, _DATA.value, _SPLITS.value, _STEP.value, **judges)
        return
    if config is None:
        raise UserError(f'--mode={_MODE.value} needs a recipe: --config=configs/ltbc.py.')
    if _MODE.value == 'import':
        if not _WEIGHTS.value:
            raise UserError('--mode=import needs --weights=FILE, the checkpoint to import.')
        from jaxcolor.weights.runs import import_run

        import_run(workdir, config, _WEIGHTS.value)
        print(f'Imported {_WEIGHTS.value} into the run directory {workdir}: train on, evaluate or colorize with it.')
    else:
        from jaxcolor.train import train

        with cluster.leaves_at_once(place):
            cluster.join(place, config.train.heartbeat)
            train(config, workdir)


def _read_config():
    try:
        config = _CONFIG.value
        return config if config and config.name else None
    except OSError as error:  # ml_collections keeps the failure to load until a field is asked for
        raise UserError(f'--config: {_last_line(error)}.') from None


def _parse(argv):
    """absl's parsing, with one sentence for what ml_collections would answer by a traceback."""
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, (AttributeError, KeyError)):
            reason = 'the config has no field ' + ' '.join(ast.literal_eval(str(error)).split())
        else:
            reason = _last_line(error)
        print(f'jaxcolor: error: {reason} (configs/base.py says what every field is)', file=sys.stderr)
        sys.exit(1)
    if flags.FLAGS['verbosity'].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # Orbax and JAX tell every step of theirs at INFO
    return rest


def _last_line(error):
    """What went wrong, without the traceback that ml_collections packs into the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r'^(\w*Error: |\[Errno \d+\] )', '', lines[-1]) if lines else type(error).__name__


if __name__ == '__main__':
    app.run(main, flags_parser=_parse)

"""The command line, `jaxcolor COMMAND`.

All commands use the same names: a trained network is `--model`, a shard set `--data`, results go to `--out`, photos are
positional. Commands import JAX late, after their arguments are parsed.
"""

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from jaxcolor.errors import UserError, one_line_errors

_MODEL = 'a run directory, an exported model, a name that `jaxcolor models` lists, or a published file'


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the program, status 2."""
        self.exit(2, f'jaxcolor: error: {message}; see `{self.prog} --help`.\n')


class Command(NamedTuple):
    """A command: what adds its arguments, and what runs it, whose docstring is the summary and two examples."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]

    @property
    def summary(self) -> str:
        """The docstring's first sentence."""
        return (inspect.getdoc(self.run) or '').partition('\n')[0]

    @property
    def examples(self) -> str:
        """Command lines, indented by two."""
        return textwrap.indent((inspect.getdoc(self.run) or '').partition('\n\n')[2], '  ')


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command.

    Args:
        argv: the command and its arguments, `sys.argv[1:]` by default.

    Raises:
        SystemExit: 2, arguments that do not parse; 1, input that cannot be used.
    """
    argv = [_normalize_flag(word) for word in (sys.argv[1:] if argv is None else argv)] or ['--help']
    parser = Parser('jaxcolor', description='Trains and runs networks that colorize gray photos.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f'examples:\n{command.examples}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            fromfile_prefix_chars='@' if name == 'prepare' else None,
        )
        if argv[0] == name:  # the others' arguments would import more than this command needs
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    args, rest = parser.parse_known_args(argv)
    takes_fields = hasattr(args, 'fields')
    if unknown := [word for word in rest if not takes_fields or re.match(r'--(?!config\.)', word)]:
        parser.error(f'{unknown[0]!r} is not an argument of `jaxcolor {argv[0]}`')
    if takes_fields:
        args.fields = rest
    args.run(args)


def _normalize_flag(word):
    """`--num_processes` -> `--num-processes`, `--noconfig.data.flip` -> `--config.data.flip=False`."""
    if match := re.fullmatch(r'--no(config\.\S+)', word):
        return f'--{match[1]}=False'
    flag, equals, value = word.partition('=')
    return f'{flag.replace("_", "-")}{equals}{value}' if re.fullmatch(r'--[a-z_]+', flag) else word


def _names(text):
    if names := [name for name in text.split(',') if name]:
        return names
    raise argparse.ArgumentTypeError('names nothing')


def _train_arguments(parser):
    _config_arguments(parser)
    parser.add_argument('--workdir', metavar='RUN', help='the run directory (runs/CONFIG-NAME)')
    parser.add_argument('--data', metavar='SHARDS', help='the shard set to train on; sets --config.data.shards')
    parser.add_argument('--processes', default='1', metavar='N', help='of this machine: auto for one a GPU, or a number (1)')
    _cluster_arguments(parser)


def _train(args):
    """Trains a network as a recipe says, or resumes a training.

    jaxcolor train --config=ltbc:quickstart
    jaxcolor train --config=ltbc --data=SHARDS --config.train.batch_size=64
    """
    from jaxcolor.runtime import local

    config = _read_config(args)
    process = _detect_process(args)
    local.end_with_starter()
    if args.processes != '1':
        gpus = local.device_ids(process)
        if (count := local.count_processes(args.processes, process, len(gpus))) > 1:
            run = [f'--workdir={args.workdir}'] if args.workdir else []
            data = [f'--data={args.data}'] if args.data else []
            sys.exit(local.run_processes(['train', f'--config={args.config}', *args.fields, *run, *data], count, gpus))
    _setup_jax()
    from jaxcolor.runtime import cluster
    from jaxcolor.train import train

    with cluster.abort_on_error(process):
        cluster.join(process, config.train.heartbeat)
        train(config, args.workdir or f'runs/{config.name}')


def _config_arguments(parser):
    add = parser.add_argument
    add('--config', metavar='RECIPE', help='a path or name, perhaps with a variant: configs/ltbc.py, ltbc:quickstart')
    add('--config.SECTION.FIELD', dest='fields', metavar='VALUE', help='set a field; jaxcolor/config.py lists all')


def _read_config(args):
    """Loads the recipe of --config and applies --config.SECTION.FIELD and --data."""
    from jaxcolor.recipes import load_recipe

    if not args.config:
        raise UserError('give a recipe, such as --config=configs/ltbc.py.')
    data = [f'--config.data.shards={args.data}'] if getattr(args, 'data', None) else []
    return load_recipe(args.config, [*args.fields, *data])


def _cluster_arguments(parser):
    group = parser.add_argument_group('several processes (set automatically under Slurm and Open MPI)')
    group.add_argument('--coordinator-address', metavar='HOST:PORT', help='the address of process 0')
    group.add_argument('--num-processes', type=int, metavar='N', help='the number of processes')
    group.add_argument('--process-id', type=int, metavar='I', help='the index of this process, from 0')


def _detect_process(args):
    from jaxcolor.runtime import cluster

    return cluster.detect_process(args.coordinator_address, args.num_processes, args.process_id)


def _setup_jax():
    """Sets up JAX for a command: caches compiled programs and silences libraries' INFO messages."""
    from absl import logging

    from jaxcolor.runtime.cache import enable_compilation_cache

    logging.set_verbosity(logging.WARNING)  # Orbax and JAX report every step of theirs at INFO
    enable_compilation_cache()


def _evaluate_arguments(parser):
    add = parser.add_argument
    add('photos', nargs='?', metavar='PHOTOS', help='with --protocol: the folder of photos')
    add('--model', required=True, metavar='RUN_OR_NAME', help=_MODEL)
    add('--data', default='', metavar='SHARDS', help='the shard set (that of the training)')
    add('--splits', type=_names, default=['validation'], metavar='NAME,...', help='splits of the shard set (validation)')
    add('--protocol', default='', metavar='NAME', help='how PHOTOS are selected: val5k, val50k, ctest10k or native')
    add('--photo-list', dest='only', default='', metavar='FILE', help='with --protocol: the photos to take, one name a line')
    add('--compare', type=_names, default=[], metavar='RUN,...', help='write a page that compares --model with these')
    add('--faithful', action='store_true', help="also evaluate a published network as its authors' program uses it")
    add('--lpips', action='store_true', help='also compute LPIPS (needs jaxcolor[lpips])')
    add('--fid', default='', metavar='FILE', help='also compute the FID, with these weights of Inception v3')
    add('--grid-photos', dest='grid', type=int, metavar='N', help='how many random photos to draw (train.grid_photos)')
    add('--step', type=int, help='checkpoint step (that of the lowest validation loss)')
    _cluster_arguments(parser)


def _evaluate(args):
    """Measures a trained network beside baselines: tables, pictures, comparisons.

    jaxcolor evaluate --model=runs/ltbc --splits=validation,test
    jaxcolor evaluate --model=ltbc-lite --compare=eccv16,RUN --protocol=val5k PHOTOS
    """
    command = _of_room('evaluation')
    command.check(args.photos, args.protocol)
    process = _detect_process(args)
    _setup_jax()
    from jaxcolor.runtime import cluster

    if process.count > 1:
        cluster.join(process, heartbeat=30)
    with cluster.abort_on_error(process):
        result = command.evaluate(
            args.model,
            args.photos or '',
            data=args.data,
            splits=args.splits,
            protocol=args.protocol,
            photo_list=args.only,
            compare=args.compare,
            lpips=args.lpips,
            fid=args.fid,
            grid_photos=args.grid,
            step=args.step,
            faithful=args.faithful,
        )
    if args.compare:
        print(result)


def _colorize(args):
    """Colors gray photographs; each keeps its own lightness, transparency and size.

    jaxcolor colorize old_photos/
    jaxcolor colorize portrait.jpg --model=runs/ltbc --out=colored
    """
    _setup_jax()
    _of_room('inference').run(args)


def _video(args):
    """Colors a film, without flicker; sound, subtitles, chapters and timestamps are kept.

    jaxcolor video film.mp4 colored.mp4
    jaxcolor video film.mkv colored.mkv --codec=libx265 --quality=16 --chroma=1.2
    """
    _setup_jax()
    _of_room('video').run(args)


def _export(args):
    """Writes a trained network as a small folder to hand on, or for other programs.

    jaxcolor export --model=runs/ltbc --out=my-model
    jaxcolor export --model=ltbc-lite --format=onnx --out=ltbc-lite.onnx
    """
    _of_room('weights').run_export(args)


def _import(args):
    """Makes an exported model of a published file, or a run directory of a checkpoint of the PyTorch reimplementation.

    jaxcolor import colorization_release_v2-9b330a0b.pth models/eccv16
    jaxcolor import --config=ltbc_pytorch --weights=peer.ckpt --out=runs/peer
    """
    _setup_jax()
    _of_room('weights').run_import(args)


def _models(args):
    """Lists the models that come with jaxcolor, and those that others published.

    jaxcolor models
    jaxcolor colorize PHOTO --model=ltbc-lite
    """
    _of_room('weights').run_models()


def _sweep_arguments(parser):
    add = parser.add_argument
    add('sweep', metavar='SWEEP', help='a text file with the arguments of one training per line')
    add('--out', required=True, metavar='FOLDER', help='where run directories, table.csv and sweep.png are written')
    add('--data', metavar='SHARDS', help='the shard set of all trainings')
    add('--collect', action='store_true', help='only tabulate the trainings that exist')
    add('--over', metavar='SECTION.FIELD', help='also draw the errors over this field, to over.png')
    add('--config.SECTION.FIELD', dest='fields', metavar='VALUE', help='set a field of all trainings')


def _sweep(args):
    """Trains the lines of a sweep file one after the other; writes one table and one picture.

    jaxcolor sweep configs/sweeps/ltbc.txt --out=runs/sweeps/ltbc --data=SHARDS
    jaxcolor sweep configs/sweeps/large_batch.txt --out=runs/sweeps/large_batch --over=train.batch_size --collect
    """
    from jaxcolor.sweep import run_sweep

    fields = args.fields + ([f'--config.data.shards={args.data}'] if args.data else [])
    run_sweep(args.sweep, Path(args.out), fields, only_collect=args.collect, over=args.over)


def _tune_inference_arguments(parser):
    add = parser.add_argument
    add('--model', type=_names, required=True, metavar='RUN,...', help='run directories; several are plotted together')
    add('--field', required=True, help='a field of section task: temperature, inference_rebalance or chroma_gain')
    add('--values', required=True, type=_names, metavar='X,...', help='values to try')
    add('--data', default='', metavar='SHARDS', help='the shard set (that of the training)')
    add('--split', default='validation', help='split of the shard set (%(default)s)')


def _tune_inference(args):
    """Measures colorfulness against error over an inference-time setting of a trained network.

    jaxcolor tune-inference --model=runs/ltbc-lite --field=temperature --values=0.1,0.2,0.38,0.6,1
    jaxcolor tune-inference --model=runs/a,runs/b --field=chroma_gain --values=1,1.5,2
    """
    try:
        values = [float(value) for value in args.values]
    except ValueError:
        raise UserError(f'--values={",".join(args.values)} are not numbers separated by commas.') from None
    _setup_jax()
    from jaxcolor.evaluation.sweep_inference import sweep_models

    sweep_models(args.model, args.field.removeprefix('task.'), values, args.data, args.split)


def _prepare(args):
    """Turns photographs into a shard set of Lab records to train on.

    jaxcolor prepare PHOTOS --out=SHARDS
    jaxcolor prepare PHOTOS --out=SHARDS --size=256 --split=train:0.9,validation:0.1
    """
    _of_room('prepare').run_prepare(args)


def _inspect(args):
    """Checks every record of a shard set and draws what it holds.

    jaxcolor inspect --data=SHARDS
    jaxcolor inspect --data=SHARDS --json
    """
    _of_room('prepare').run_inspect(args)


def _benchmark(args):
    """Measures what each network costs on this machine, beside PyTorch if asked.

    jaxcolor benchmark --config=ltbc,vgg_fusion --mode=train,infer --batch=8,32
    jaxcolor benchmark --model=ltbc-lite PHOTOS
    """
    _of_room('benchmark').run(args)


def _serve(args):
    """Serves a web page that colors photos, and an HTTP API beside it.

    jaxcolor serve
    jaxcolor serve --model=ltbc-lite --model=runs/ltbc --port=8080
    """
    _setup_jax()
    _of_room('web').run(args)


def _of_room(room):
    """A room's own command module, imported when it is needed."""
    return importlib.import_module(f'jaxcolor.{room}.command')


COMMANDS = {
    'colorize': Command(lambda parser: _of_room('inference').add_arguments(parser), _colorize),
    'video': Command(lambda parser: _of_room('video').add_arguments(parser), _video),
    'train': Command(_train_arguments, _train),
    'evaluate': Command(_evaluate_arguments, _evaluate),
    'prepare': Command(lambda parser: _of_room('prepare').add_prepare_arguments(parser), _prepare),
    'inspect': Command(lambda parser: _of_room('prepare').add_inspect_arguments(parser), _inspect),
    'serve': Command(lambda parser: _of_room('web').add_arguments(parser), _serve),
    'models': Command(lambda parser: None, _models),
    'export': Command(lambda parser: _of_room('weights').add_export_arguments(parser), _export),
    'import': Command(lambda parser: _of_room('weights').add_import_arguments(parser), _import),
    'sweep': Command(_sweep_arguments, _sweep),
    'tune-inference': Command(_tune_inference_arguments, _tune_inference),
    'benchmark': Command(lambda parser: _of_room('benchmark').add_arguments(parser), _benchmark),
}

"""`jaxcolor benchmark`: what each network costs on this machine.

    jaxcolor benchmark                                                 every recipe's training step
    jaxcolor benchmark --config=ltbc,vgg_fusion --mode=train,infer --precision=f32,bf16 --batch=8,32
    jaxcolor benchmark --config=ltbc --input                           what the step waits for its photos
    jaxcolor benchmark --config=ltbc --cpu-kernels=none,all            what the CPU kernels save
    jaxcolor benchmark --config=ltbc --scaling --cpu-devices=4         1, 2, 4 devices
    jaxcolor benchmark --config=ltbc --against=torch                   beside the same network in PyTorch, in turns
    jaxcolor benchmark --model=RUN PHOTOS                              colorize, and its network alone
    jaxcolor benchmark --config=ltbc --trace=DIR                       a profile of three steps, for Perfetto, XProf

Values separated by commas are all combined. Results are printed, and written to --out as results.json, results.md and
results.png; --compare=results.json puts them beside earlier ones. Recipes have their own photo size and width.
"""

import argparse
import dataclasses
import datetime
import itertools
import os
import platform

import jax

from jaxcolor.benchmark import input_pipeline, report
from jaxcolor.benchmark.against import TorchTraining, check_same_loss, paired, varied_batch
from jaxcolor.benchmark.folder import beside_the_network
from jaxcolor.benchmark.workload import Case, Workload, ceilings, measure
from jaxcolor.errors import UserError
from jaxcolor.models.cpu_kernels import CPU_KERNELS
from jaxcolor.runtime.machine import processor

# The recipes, and whether their extractors' features come cached.
RECIPES = [
    ('ltbc', False),
    ('ltbc:quickstart', False),
    ('ltbc_pytorch', False),
    ('ltbc_deconv', False),
    ('vgg_fusion', False),
    ('vgg_fusion', True),
    ('cgan', False),
    ('deepcolor:base', False),
    ('deepcolor:base', True),
    ('deepcolor:1', True),
    ('deepcolor:2', True),
    ('deepcolor:3', True),
]


def cases(args) -> list[Case]:
    """The combinations that the command line asks for."""
    recipes = [(name, args.cached) for name in args.configs] if args.configs else RECIPES
    choices = itertools.product(
        recipes, args.mode, args.precision, args.batch, args.size, args.mapping, args.data, args.cpu_kernels
    )
    made = [
        Case(recipe, mode, precision, batch, size, args.devices, mapping, data, cpu_kernels, cached)
        for (recipe, cached), mode, precision, batch, size, mapping, data, cpu_kernels in choices
    ]
    if not args.scaling:
        return made
    # The batch is shared out (strong), or grows with the devices (weak).
    counts = [n for n in (2**i for i in range(20)) if n <= len(jax.devices())]
    return [
        dataclasses.replace(case, devices=n, batch=batch)
        for case in made
        for n in counts
        for batch in dict.fromkeys((case.batch, case.batch * n))
    ]


def machine() -> dict:
    """What the figures were taken with."""
    devices = jax.devices()
    return {
        'device': f'{len(devices)} x {devices[0].device_kind}',
        'host': f'{processor()}, {os.cpu_count()} cores',
        'versions': f'jax {jax.__version__}, Python {platform.python_version()}',
        'date': datetime.date.today().isoformat(),
    }


def trace(case: Case, folder):
    """Writes a profile of three steps."""
    workload = Workload(case)
    with jax.profiler.trace(folder):
        workload.run(3)
    workload.close()
    print(f'profile: {folder} (open its .trace.json.gz in Perfetto, or the folder in XProf)')


def beside_torch(workload: Workload, rounds: int) -> dict:
    """Times jaxcolor and PyTorch in turns: {'eager': Ratio as a dict, 'compiled': the same}. Both first show one loss.

    Raises:
        UserError: PyTorch is not installed, or computes something else.
    """
    case = workload.case
    batch = varied_batch(workload.config, case.batch)
    if case.mode == 'train':
        check_same_loss(workload.config, batch)
    steps, found = workload.steps_that_take(0.3), {}
    for name, is_compiled in (('eager', False), ('compiled', True)):
        theirs = TorchTraining(workload.config, batch, case.precision, is_compiled)
        step = theirs.step if case.mode == 'train' else theirs.infer

        def run(theirs=theirs, step=step):
            for _ in range(steps):
                step()
            theirs.synchronize()

        ratio = paired(lambda: workload.run(steps), run, rounds)
        found[name] = ratio._replace(ours_s=ratio.ours_s / steps, theirs_s=ratio.theirs_s / steps)._asdict()
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""

    def several(text):
        return text.split(',')

    def numbers(text):
        return [int(number) for number in text.split(',')]

    add = parser.add_argument
    add('photos', nargs='?', metavar='PHOTOS', help='a folder of photos: time `colorize` with --model on them instead')
    add('--config', dest='configs', type=several, default=[], metavar='NAME,...', help='recipes (all)')
    add('--cached', action='store_true', help="the extractor's features come with the batch")
    add('--mode', type=several, default=['train'], metavar='train,infer')
    add('--precision', type=several, default=['f32'], metavar='f32,tf32,bf16')
    add('--batch', type=numbers, default=[4], metavar='N,...', help='photos a step, over all devices (4)')
    add('--size', type=numbers, default=[0], metavar='N,...', help="pixels of a photo's side (the recipe's)")
    add('--devices', type=int, default=1, help='how many to use; 0 for all (%(default)s)')
    add('--mapping', type=several, default=['shard_map'], metavar='shard_map,pmap')
    add('--data', type=several, default=['fixed'], metavar='fixed,stream,device')
    add(
        '--input',
        action='store_const',
        dest='data',
        const=['fixed', 'stream', 'device'],
        default=argparse.SUPPRESS,
        help='what the step waits for its photos: --data=fixed,stream,device',
    )
    add(
        '--cpu-kernels',
        type=several,
        default=['all'],
        metavar='all,none,...',
        help=f'of the layers, used on CPUs: all, none, or one of {", ".join(CPU_KERNELS)} (all)',
    )
    add('--scaling', action='store_true', help='1, 2, 4, ... devices; the batch shared out, and growing with them')
    add('--cpu-devices', type=int, help='make so many devices of the CPU')
    add('--against', choices=['torch'], help="put PyTorch's step times, eager and compiled, beside each row")
    add('--rounds', type=int, default=7, help='timed, of at least 0.3 s each (%(default)s)')
    add('--model', metavar='RUN_OR_NAME', help='the network for PHOTOS')
    add('--trace', metavar='DIR', help='write a profile instead')
    add('--out', metavar='DIR', help='where to write the results')
    add('--compare', metavar='JSON', help='earlier results')
    input_pipeline.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Measures and reports. Raises UserError."""
    if args.rounds < 1:
        raise UserError('--rounds must be at least 1.')
    if args.of != 'steps':
        input_pipeline.run(args)
        return
    if args.cpu_devices:
        jax.config.update('jax_num_cpu_devices', args.cpu_devices)
    earlier = report.read(args.compare) if args.compare else None
    if args.model or args.photos:
        if not (args.model and args.photos):
            raise UserError('--model and PHOTOS go together: give both.')
        count, ratio = beside_the_network(args.model, args.photos, args.rounds)
        print(
            f'{", ".join(machine().values())}: colorize {count / ratio.ours_s:.4g} photos/s, its network alone '
            f'{count / ratio.theirs_s:.4g}: {100 / ratio.median:.0f} % ({100 / ratio.largest:.0f}-{100 / ratio.least:.0f})'
        )
        return
    todo = cases(args)
    if args.trace:
        trace(todo[0], args.trace)
        return
    results = {'machine': machine(), 'ceilings': {p: ceilings(p) for p in args.precision}, 'rows': []}
    print(', '.join(results['machine'].values()), flush=True)
    for number, case in enumerate(todo, start=1):
        workload = Workload(case)
        row = measure(workload, args.rounds)
        if args.against:
            row['against'] = beside_torch(workload, args.rounds)
        workload.close()
        results['rows'].append(row)
        print(f'{number}/{len(todo)} {report.name_of(row)}: {1e3 * row["step_s"]:.4g} ms', flush=True)
        written = report.write(results, args.out) if args.out else []  # after each row: the next one may not end
    print(f'\n{report.markdown(results)}')
    if earlier:
        print(f'\n{report.comparison(results, earlier)}')
    print(*written, sep='\n')

"""`jaxcolor benchmark`: the speed and memory of each network on this machine.

    jaxcolor benchmark                                                 training steps of all recipes
    jaxcolor benchmark --config=ltbc,vgg_fusion --mode=train,infer --precision=f32,bf16 --batch=8,32
    jaxcolor benchmark --config=ltbc --input=fixed,stream,device       how long steps wait for their photos
    jaxcolor benchmark --config=ltbc --cpu-kernels=none,all            what the CPU kernels save
    jaxcolor benchmark --config=ltbc --scaling --cpu-devices=4         on 1, 2 and 4 devices
    jaxcolor benchmark --config=ltbc --against=torch                   beside the same network in PyTorch
    jaxcolor benchmark --config=siggraph17,deoldify-artistic --mode=infer --size=512 --batch=1     published networks
    jaxcolor benchmark --model=RUN PHOTOS                              `colorize`, and its network alone
    jaxcolor benchmark --config=ltbc --trace=DIR                       a profile of three steps
    jaxcolor benchmark --budget=300                                    what is wanted of a GPU that is at hand for minutes
    jaxcolor benchmark --target=h100 --config=ltbc --precision=bf16 --batch=128    compiled for a GPU that is not there

All combinations of comma-separated values are measured. Results are printed, and written to --out as results.json,
results.md and results.png; --compare=results.json compares them with earlier ones. Recipes set photo size and width.
"""

import argparse
import dataclasses
import datetime
import itertools
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax

from jaxcolor.benchmark import ahead, budget_parts, input_pipeline, report
from jaxcolor.benchmark.coloring import time_colorize
from jaxcolor.benchmark.targets import NAMES, load_target, write_target
from jaxcolor.benchmark.torch_comparison import time_beside_torch
from jaxcolor.benchmark.workload import MATMUL_PRECISION, Case, Workload, ceilings, measure
from jaxcolor.errors import UserError
from jaxcolor.models.cpu_kernels import CPU_KERNELS
from jaxcolor.runtime.machine import processor

# Recipes, and whether the extractor's features are cached.
RECIPES = [
    ('ltbc', False),
    ('ltbc:quickstart', False),
    ('ltbc_pytorch', False),
    ('ltbc_deconv', False),
    ('ltbc_compact', False),
    ('ltbc_lite', False),
    ('vgg_fusion', False),
    ('vgg_fusion', True),
    ('cgan', False),
    ('deepcolor:base', False),
    ('deepcolor:base', True),
    ('deepcolor:1', True),
    ('deepcolor:2', True),
    ('deepcolor:3', True),
]


def cases(args: argparse.Namespace) -> list[Case]:
    """All combinations of the arguments. Raises UserError."""
    recipes = [(name, args.cached) for name in args.configs] if args.configs else RECIPES
    choices = itertools.product(
        recipes, args.mode, args.precision, args.batch or [4], args.size, args.mapping, args.data, args.cpu_kernels
    )
    all_cases = [
        Case(recipe, mode, precision, batch, size, args.devices, mapping, data, cpu_kernels, cached)
        for (recipe, cached), mode, precision, batch, size, mapping, data, cpu_kernels in choices
    ]
    if not args.scaling:
        return all_cases
    # Strong scaling divides the batch among the devices, weak scaling multiplies it.
    counts = [n for n in (2**i for i in range(20)) if n <= len(jax.devices())]
    return [
        dataclasses.replace(case, devices=n, batch=batch)
        for case in all_cases
        for n in counts
        for batch in dict.fromkeys((case.batch, case.batch * n))
    ]


def machine() -> dict[str, str]:
    """The devices, the host, the versions and the date."""
    devices = jax.devices()
    return {
        'device': f'{len(devices)} x {devices[0].device_kind}',
        'host': f'{processor()}, {os.cpu_count()} cores',
        'versions': f'jax {jax.__version__}, Python {platform.python_version()}',
        'date': datetime.date.today().isoformat(),
    }


def trace(case: Case, folder: str) -> None:
    """Writes a profile of three steps to a folder. Raises UserError."""
    workload = Workload(case)
    with jax.profiler.trace(folder):
        workload.run(3)
    workload.close()
    print(f'profile: {folder} (open its .trace.json.gz in Perfetto, or the folder in XProf)')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""

    def several(text: str) -> list[str]:
        return text.split(',')

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(',')]

    add = parser.add_argument
    add('photos', nargs='?', metavar='PHOTOS', help='time `colorize` with --model on this folder of photos instead')
    add(
        '--config',
        dest='configs',
        type=several,
        default=[],
        metavar='NAME,...',
        help='recipes; to --mode=infer, published networks, too',
    )
    add('--cached', action='store_true', help="cache the extractor's features")
    add('--mode', type=several, default=['train'], metavar='train,infer')
    add('--precision', type=several, default=['f32'], metavar='f32,tf32,bf16')
    add('--batch', type=numbers, default=[], metavar='N,...', help='photos per step, over all devices (4)')
    add('--size', type=numbers, default=[0], metavar='N,...', help="side of the photos in pixels (the recipe's)")
    add('--devices', type=int, default=1, help='number of devices; 0 for all (%(default)s)')
    add('--mapping', type=several, default=['shard_map'], metavar='shard_map,pmap')
    add(
        '--input',
        dest='data',
        type=several,
        default=['fixed'],
        metavar='fixed,stream,device',
        help='photos of the steps: one fixed batch, a stream from shards, or a set on the devices (fixed)',
    )
    add(
        '--cpu-kernels',
        type=several,
        default=['all'],
        metavar='all,none,...',
        help=f'of the layers, used on CPUs: all, none, or one of {", ".join(CPU_KERNELS)} (all)',
    )
    add(
        '--scaling',
        action='store_true',
        help='1, 2, 4, ... devices, each with the same batch and with one that grows with them',
    )
    add('--cpu-devices', type=int, help='number of devices to split the CPU into')
    add(
        '--against',
        choices=['torch', 'torch.compile'],
        help='time PyTorch in turns with each case: torch, eager and compiled; or compiled alone',
    )
    add('--rounds', type=int, default=7, help='timed rounds of at least 0.3 s each (%(default)s)')
    add('--model', metavar='RUN_OR_NAME', help='the network that colors PHOTOS')
    add('--trace', metavar='DIR', help='write a profile of three steps instead')
    add('--budget', type=float, metavar='SECONDS', help='all that is wanted of a GPU, most wanted first, within this time')
    add('--parts', type=several, default=[], metavar='NAME,...', help=f'of --budget: {", ".join(budget_parts.PARTS)} (all)')
    add(
        '--target',
        metavar='NAME_OR_FILE',
        help=f'compile for a device that is not there, without running: {", ".join(NAMES)}',
    )
    add('--describe', metavar='FILE', help="describe this machine's GPU for the --target of others")
    add('--out', metavar='DIR', help='folder for the results')
    add('--compare', metavar='JSON', help='earlier results to compare with')
    input_pipeline.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark that the arguments ask for. Raises UserError."""
    if args.rounds < 1:
        raise UserError('--rounds must be at least 1.')
    if args.budget is not None:
        budget_parts.run(args, RECIPES)
        return
    if args.of != 'steps':
        input_pipeline.run(args)
        return
    if args.cpu_devices:
        jax.config.update('jax_num_cpu_devices', args.cpu_devices)
    earlier = report.read(args.compare) if args.compare else None
    if args.describe:
        if jax.default_backend() != 'gpu':
            raise UserError('--describe: JAX sees no GPU here; run it on a machine that has one.')
        write_target(args.describe, {p: ceilings(p) for p in MATMUL_PRECISION}, _memory_of(jax.devices()[0]))
        return
    if args.target:
        args.batch = args.batch or [128]
        ahead.run(cases(args), load_target(args.target), args.out, earlier)
        return
    if args.model or args.photos:
        if not (args.model and args.photos):
            raise UserError('--model and PHOTOS need each other; give both.')
        _run_colorize(args)
    elif args.trace:
        trace(cases(args)[0], args.trace)
    else:
        _run_cases(cases(args), args, earlier)


def _memory_of(device):
    return (device.memory_stats() or {}).get('bytes_limit', 0)


def _run_colorize(args):
    count, ratio = time_colorize(args.model, args.photos, args.rounds)
    print(
        f'{", ".join(machine().values())}: colorize {count / ratio.ours_s:.4g} photos/s, its network alone '
        f'{count / ratio.theirs_s:.4g}: {100 / ratio.median:.0f} % ({100 / ratio.largest:.0f}-{100 / ratio.least:.0f})'
    )


def _run_cases(all_cases: Sequence[Case], args: argparse.Namespace, earlier: dict[str, Any] | None) -> None:
    """Measures the cases, and prints and writes the results."""
    host = machine()
    rows: list[dict[str, Any]] = []
    results = {'machine': host, 'ceilings': {p: ceilings(p) for p in args.precision}, 'rows': rows}
    print(', '.join(host.values()), flush=True)
    for number, case in enumerate(all_cases, start=1):
        workload = Workload(case, aged=not args.against)  # which PyTorch's side lacks
        row = measure(workload, args.rounds)
        if args.against:
            row['against'] = time_beside_torch(workload, args.rounds, args.against == 'torch.compile')
        workload.close()
        rows.append(row)
        print(f'{number}/{len(all_cases)} {report.name_of(row)}: {1e3 * row["step_s"]:.4g} ms', flush=True)
        written = report.write(results, args.out) if args.out else []  # after each row, in case the next one fails
    print(f'\n{report.markdown(results)}')
    if earlier:
        print(f'\n{report.comparison(results, earlier)}')
    print(*written, sep='\n')

"""Compiles steps for devices that are not there, and says what they will do: kernels, bytes, memory, a roofline.

A process of its own compiles each step (`main`): it has flags for XLA of its own, and can be ended.
"""

import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from jaxcolor import files, tasks
from jaxcolor.benchmark import hlo, report
from jaxcolor.benchmark.targets import Target
from jaxcolor.benchmark.workload import MATMUL_PRECISION, Case, config_of
from jaxcolor.errors import UserError
from jaxcolor.models import extractors
from jaxcolor.runtime.parallel import AXIS

EFFICIENCY = 0.75  # of the peak, which convolutions and matrix products are taken to reach
_FLAGS = {
    # Without a GPU there is nothing to time kernels on; Triton's products need that.
    'cuda': '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false',
    'tpu': '',
}
_SUFFIX = {'cuda': 'gpu_after_optimizations.txt', 'tpu': 'after_optimizations.txt'}
_TIME_LIMIT = 1800  # seconds


def measure(case: Case, target: Target, folder: str | os.PathLike[str] = '') -> dict[str, Any]:
    """Compiles a case for a target and estimates it.

    Args:
        case: `devices` of the target share its batch.
        target: the device.
        folder: where the optimized HLO is kept; '' keeps it nowhere.

    Returns:
        The fields of the case; device; step_s, by `hlo.roofline` at EFFICIENCY; images_per_second, of all devices; kernels;
        flops and moved (bytes), of one device; memory: bytes of temporaries and arguments, None if XLA does not tell;
        collectives: {kind: number}; largest: the ten kernels that take longest, each {seconds, kind, operation}; compile_s.

    Raises:
        UserError: the case cannot be compiled for the target, or not within half an hour.
    """
    start = time.perf_counter()
    text, memory = _compile(case, target)
    compile_s = time.perf_counter() - start
    if folder:
        path = (
            Path(folder)
            / f'{case.recipe.replace(":", "-")}-{case.mode}-{case.precision}-{case.batch}-{case.devices}.hlo.txt'
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
    kernels = hlo.kernels(hlo.parse(text))
    rates = peaks_of(case, target)
    whole = hlo.roofline(kernels, rates, target.bandwidth, EFFICIENCY)
    times = sorted(((k.runs * hlo.seconds(k, rates, target.bandwidth, EFFICIENCY), k) for k in kernels), key=lambda x: -x[0])
    return {
        **dataclasses.asdict(case),
        'device': target.device,
        'step_s': whole.seconds,
        'images_per_second': case.batch / whole.seconds,
        'kernels': whole.kernels,
        'flops': whole.flops,
        'moved': whole.moved,
        'memory': memory,
        'collectives': whole.collectives,
        'largest': [{'seconds': s, 'kind': k.kind, 'operation': k.operation} for s, k in times[:10]],
        'compile_s': compile_s,
    }


def run(cases: Sequence[Case], target: Target, out: str | None, earlier: dict[str, Any] | None) -> None:
    """Compiles cases; prints and writes the results: results.json, results.md, the optimized HLO. Raises UserError."""
    rows: list[dict[str, Any]] = []
    about = {'device': target.device, 'versions': f'jax {jax.__version__}', 'date': datetime.date.today().isoformat()}
    results = {'machine': about, 'rows': rows}
    for number, case in enumerate(cases, start=1):
        row = measure(case, target, out or '')
        rows.append(row)
        print(f'{number}/{len(cases)} {report.name_of(row)}: {1e3 * row["step_s"]:.4g} ms by roofline; longest:', flush=True)
        for kernel in row['largest']:
            print(f'  {1e6 * kernel["seconds"]:7.0f} us  {kernel["kind"]}: {kernel["operation"]}')
        if out:
            files.write_text(Path(out) / 'results.json', json.dumps(results, indent=1) + '\n')
            files.write_text(Path(out) / 'results.md', markdown(rows, target) + '\n')
    print(f'\n{markdown(rows, target)}')
    if earlier:
        print(f'\n{report.comparison(results, earlier)}')


def markdown(rows: Sequence[dict[str, Any]], target: Target) -> str:
    """The rows of `measure` as a table, and what it stands on."""
    head = ['network', 'batch', 'step (ms)', 'images/s', 'kernels', 'TFLOP', 'GB moved', 'memory (GB)', 'collectives']
    lines = [f'| {" | ".join(head)} |', '|:--|' + '--:|' * (len(head) - 2) + ':--|']
    for row in rows:
        cells = [
            report.name_of(row),
            row['batch'],
            f'{1e3 * row["step_s"]:.2f}',
            f'{row["images_per_second"]:,.0f}',
            row['kernels'],
            f'{row["flops"] / 1e12:.2f}',
            f'{row["moved"] / 1e9:.1f}',
            f'{row["memory"] / 1e9:.2f}' if row['memory'] else '?',
            ', '.join(f'{count} {kind}' for kind, count in row['collectives'].items()),
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    peaks = ', '.join(f'{precision} {peak / 1e12:.0f}' for precision, peak in target.peaks.items())
    about = (
        f'Compiled for {target.device}, not run: each kernel takes the longer of its computing (TFLOP/s: {peaks}; '
        f'convolutions and matrix products reach {100 * EFFICIENCY:.0f} % of that) and its moving '
        f'({target.bandwidth / 1e12:.1f} TB/s), one after the other. Waiting for other devices or the host is not in it. '
        'Kernels, TFLOP, GB: of one device.'
    )
    return '\n'.join([*lines, '', about])


def peaks_of(case: Case, target: Target) -> dict[str, float]:
    """Multiplications and additions a second by HLO dtype: products of float32 are TF32's where the case allows it."""
    float32 = target.peaks['f32'] if case.precision == 'f32' else target.peaks.get('tf32', target.peaks['f32'])
    return {'f32': float32, 'bf16': target.peaks['bf16'], 'f16': target.peaks.get('f16', target.peaks['bf16'])}


def _compile(case, target):
    """-> (the optimized HLO, bytes of memory or None)"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = {'case': dataclasses.asdict(case), 'target': target._asdict()}
        (folder / 'request.json').write_text(json.dumps(request), encoding='utf-8')
        dump = f'--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step'
        environment = {
            **os.environ,
            'XLA_FLAGS': f'{dump} {_FLAGS[target.platform]}',
            'JAX_PLATFORMS': 'cpu',
            'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
            'TPU_SKIP_MDS_QUERY': '1',
            'JAX_ENABLE_COMPILATION_CACHE': 'false',
        }
        command = [sys.executable, '-m', 'jaxcolor.benchmark.ahead', str(folder)]
        with open(folder / 'stderr', 'w', encoding='utf-8') as errors:
            process = subprocess.Popen(command, env=environment, stderr=errors, stdout=subprocess.DEVNULL)
            try:
                _wait(process, folder, target)
            finally:
                process.kill()
                process.wait()
        texts = sorted(folder.glob(f'*jit_step*{_SUFFIX[target.platform]}'), key=lambda path: path.stat().st_size)
        if not texts:
            raise UserError(f'{case.recipe} was not compiled for {target.device}: {_reason(folder)}')
        return texts[-1].read_text(encoding='utf-8'), _memory(folder)


def _wait(process, folder, target):
    """Until the optimized program is written, or the process ends: what code a GPU gets from it does not matter here."""
    end, last = time.monotonic() + _TIME_LIMIT, -1
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.5)
        reports = list(folder.glob('*jit_step*memory-usage-report.txt'))
        if target.platform == 'cuda' and reports:
            size = sum(path.stat().st_size for path in folder.glob(f'*jit_step*{_SUFFIX["cuda"]}'))
            if size and size == last:
                return
            last = size


def _memory(folder):
    texts = [path.read_text(encoding='utf-8') for path in folder.glob('*jit_step*memory-usage-report.txt')]
    return sum(int(size) for text in texts for size in re.findall(r'Total bytes: (\d+)', text)) or None


def _reason(folder):
    lines = [line for line in (folder / 'stderr').read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    return lines[-1][:300] if lines else f'nothing came within {_TIME_LIMIT} s.'


# -- The process that compiles ----------------------------------------------------------------------------------------


def compile_step(case: Case, target: Target) -> None:
    """Compiles the step of a case, from shapes alone. Raises UserError where JAX lacks the target's plugin."""
    try:
        if target.platform == 'cuda':
            grid = f'1x1x{case.devices}'
            topology = topologies.get_topology_desc(platform='cuda', target_config=target.description, topology=grid)
        else:
            topology = topologies.get_topology_desc(platform='tpu', topology_name=target.description)
    except Exception as error:  # of any kind, from the plugin
        extra = 'cuda' if target.platform == 'cuda' else 'tpu'
        raise UserError(f"JAX cannot compile for {target.device} here; install '.[{extra}]' ({str(error)[:200]}).") from None
    mesh = jax.sharding.Mesh(np.array(topology.devices[: case.devices]), (AXIS,))
    config = config_of(case)
    task, crop = tasks.build(config), config.data.crop
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    batch: dict[str, Any] = {}
    if config.extractor.name:
        batch |= _extractor(config, case)
        state = state.replace(frozen=batch.pop('frozen', state.frozen))
    if case.mode == 'train':
        batch['lab'] = jax.ShapeDtypeStruct((case.batch, crop, crop, 3), jnp.uint8)
        batch['label'] = jax.ShapeDtypeStruct((case.batch,), jnp.int32)
    else:
        batch['lightness'] = jax.ShapeDtypeStruct((case.batch, crop, crop, 1), jnp.float32)
        state = jax.eval_shape(task.folded, state)

    def of_device(state, batch):
        if case.mode == 'train':
            return task.train_step(state, batch)
        features = {'global_features': next(iter(batch['features'].values()))} if case.cached else {}
        return task.predict(state, batch['lightness'], jax.random.PRNGKey(0), **features)

    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    outputs = (replicated, replicated) if case.mode == 'train' else split
    step = jax.shard_map(of_device, mesh=mesh, in_specs=(replicated, split), out_specs=outputs, check_vma=False)
    step.__name__ = 'step'  # of the compiled program
    arguments = [_placed(tree, NamedSharding(mesh, spec)) for tree, spec in ((state, replicated), (batch, split))]
    with jax.default_matmul_precision(MATMUL_PRECISION[case.precision]):
        jitted = jax.jit(step, donate_argnums=(0,) if case.mode == 'train' else ())
        jitted.trace(*arguments).lower(lowering_platforms=(target.platform,)).compile()


def _extractor(config, case):
    extractor = extractors.random_extractor(config.extractor.name)
    if case.cached:
        return {'features': {extractor.name: jax.ShapeDtypeStruct((case.batch, 1000), jnp.float32)}}
    return {'frozen': jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), extractor)}


def _placed(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def main() -> None:
    """Compiles what the request in the folder of the command line asks for."""
    request = json.loads((Path(sys.argv[1]) / 'request.json').read_text(encoding='utf-8'))
    try:
        compile_step(Case(**request['case']), Target(**request['target']))
    except UserError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()

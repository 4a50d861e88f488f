"""Results of the benchmark as JSON, Markdown and a picture, and compared with earlier ones."""

import json
import statistics
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from jaxcolor import files
from jaxcolor.errors import UserError

Row = Mapping[str, Any]  # of `workload.measure`
Results = Mapping[str, Any]  # {'machine', 'ceilings': {precision: `workload.ceilings`}, 'rows': [Row]}

FIELDS = ('recipe', 'mode', 'precision', 'batch', 'size', 'devices', 'mapping', 'data', 'cpu_kernels', 'cached')
SHOWN = {
    'mode': 'train',
    'precision': 'f32',
    'devices': 1,
    'mapping': 'shard_map',
    'data': 'fixed',
    'cpu_kernels': 'all',
}


def name_of(row: Row) -> str:
    """The recipe and every field that is not the default, e.g. 'ltbc, infer, bf16'."""
    parts = [row['recipe'], *(str(row[field]) for field in SHOWN if row[field] != SHOWN[field] and field != 'devices')]
    parts += [f'{row["devices"]} devices'] * (row['devices'] != 1) + ['cached'] * row['cached']
    return ', '.join(parts)


def bound(row: Row, ceilings: Mapping[str, float]) -> str:
    """What limits the step on the roofline, 'arithmetic' or 'memory'; '?' if XLA does not count bytes."""
    if not row['bytes']:
        return '?'
    arithmetic_s = row['gflop'] * 1e9 * row['batch'] / row['devices'] / ceilings['flops_per_second']
    return 'arithmetic' if arithmetic_s > row['bytes'] / ceilings['bytes_per_second'] else 'memory'


def markdown(results: Results) -> str:
    """The rows as a table, and the ratios to PyTorch as a second one."""
    head = [
        'network',
        'trained parameters',
        'photo',
        'batch',
        'GFLOP per image',
        'by XLA',
        'step (ms)',
        'spread',
        'images/s',
        'of the ceiling',
        'bound by',
        'memory (MB)',
        'compile (s)',
    ]
    lines = ['| ' + ' | '.join(head) + ' |', '|:--|' + '--:|' * (len(head) - 1)]
    for row in results['rows']:
        top = results['ceilings'][row['precision']]
        share = row['flops_per_second'] / row['devices'] / top['flops_per_second']
        cells = [
            name_of(row),
            f'{row["parameters"]:,}',
            row['size'],
            row['batch'],
            f'{row["gflop"]:.2f}',
            f'{row["xla_gflop"]:.2f}' if row['xla_gflop'] else '?',
            f'{1e3 * row["step_s"]:.4g}',
            f'{100 * row["spread"]:.0f} %',
            f'{row["images_per_second"]:.4g}',
            f'{100 * share:.0f} %',
            bound(row, top),
            f'{row["memory"] / 1e6:.0f}' if row['memory'] else '?',
            f'{row["compile_s"]:.0f}',
        ]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    tops = '; '.join(
        f'{precision} {top["flops_per_second"] / 1e9:,.0f} GFLOP/s in a matrix product, '
        f'{top["bytes_per_second"] / 1e9:,.1f} GB/s in a copy'
        for precision, top in results['ceilings'].items()
    )
    machine = ', '.join(results['machine'].values())
    torch = ['', ratios(results)] if any('against' in row for row in results['rows']) else []
    return '\n'.join([*lines, *torch, '', f'Ceilings, measured in the same run: {tops}. {machine}.'])


def ratios(results: Results) -> str:
    """The step times beside PyTorch's as a table; jaxcolor is faster where the ratio is below 1."""
    lines = ['| network | photo | batch | PyTorch | PyTorch (ms) | jaxcolor (ms) | jaxcolor / PyTorch | of CPU time |']
    lines.append('|:--|--:|--:|:--|--:|--:|--:|--:|')
    for row in results['rows']:
        for kind, ratio in row['against'].items():
            spread = f'{ratio["median"]:.2f} ({ratio["least"]:.2f}-{ratio["largest"]:.2f})'
            lines.append(
                f'| {name_of(row)} | {row["size"]} | {row["batch"]} | {kind} | {1e3 * ratio["theirs_s"]:.4g} | '
                f'{1e3 * ratio["ours_s"]:.4g} | {spread} | {ratio["cpu"]:.2f} |'
            )
    return '\n'.join(lines)


def read(path: str | PathLike) -> dict[str, Any]:
    """Reads results.json. Raises UserError."""
    try:
        results = json.loads(Path(path).read_text(encoding='utf-8'))
        rows = [{field: row[field] for field in FIELDS} | {'step_s': float(row['step_s'])} for row in results['rows']]
        return {'machine': results['machine'], 'rows': rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not a results.json of the benchmark ({error}).') from None


def comparison(results: Results, earlier: Results) -> str:
    """The step times beside earlier ones of the same cases, as a table."""
    earlier_s = {tuple(row[field] for field in FIELDS): row['step_s'] for row in earlier['rows']}
    lines = [
        f'Earlier: {", ".join(earlier["machine"].values())}',
        '',
        '| network | earlier (ms) | now (ms) | now / earlier |',
        '|:--|--:|--:|--:|',
    ]
    for row in results['rows']:
        before = earlier_s.get(tuple(row[field] for field in FIELDS))
        if before:
            cells = f'{1e3 * before:.4g} | {1e3 * row["step_s"]:.4g} | {row["step_s"] / before:.2f}'
            lines.append(f'| {name_of(row)} | {cells} |')
    return '\n'.join(lines) if len(lines) > 4 else 'The earlier results have none of these cases.'


def write(results: Results, folder: str | PathLike) -> list[Path]:
    """Writes results.json, results.md and results.png to a folder -> their paths. Raises UserError."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f'results.{suffix}' for suffix in ('json', 'md', 'png')]
        files.write_text(paths[0], json.dumps(results, indent=1) + '\n')
        files.write_text(paths[1], markdown(results) + '\n')
        draw(results, paths[2])
    except OSError as error:
        raise UserError(f'the results cannot be written to {folder} ({error.strerror}).') from None
    return paths


def draw(results: Results, path: str | PathLike) -> None:
    """Draws bars (images/s, or the ratio to PyTorch) and the roofline of all rows."""
    from matplotlib.figure import Figure

    rows = results['rows']
    figure = Figure(figsize=(12, max(4, 0.3 * len(rows))), layout='constrained')
    bars, roofline = figure.subplots(1, 2)
    names = [f'{name_of(row)}, {row["batch"]}x{row["size"]}' for row in rows]
    against = [row.get('against', {}) for row in rows]
    if any(against):
        for offset, (kind, color) in enumerate({'eager': 'C1', 'compiled': 'C2'}.items()):
            timed = [(i, by_kind[kind]) for i, by_kind in enumerate(against) if kind in by_kind]
            medians = [ratio['median'] for _, ratio in timed]
            errors = [[r['median'] - r['least'] for _, r in timed], [r['largest'] - r['median'] for _, r in timed]]
            y = [i + 0.4 * offset - 0.2 for i, _ in timed]
            bars.barh(y, medians, 0.38, xerr=errors, color=color, label=f'PyTorch, {kind}')
        bars.axvline(1, color='black', linewidth=1)
        bars.set(xlabel="jaxcolor's step time / PyTorch's")
        bars.legend()
    else:
        bars.barh(range(len(rows)), [row['images_per_second'] for row in rows], color='C0')
        bars.set(xlabel='images/s', xscale='log')
    bars.set(yticks=range(len(rows)), yticklabels=names)
    bars.invert_yaxis()
    for number, (precision, top) in enumerate(results['ceilings'].items()):
        known = [row for row in rows if row['precision'] == precision and row['bytes']]
        intensity = [row['gflop'] * 1e9 * row['batch'] / row['devices'] / row['bytes'] for row in known]
        achieved = [row['flops_per_second'] / row['devices'] / 1e9 for row in known]
        roofline.scatter(intensity, achieved, color=f'C{number}', label=precision, s=18)
        ridge = top['flops_per_second'] / top['bytes_per_second']
        middle = statistics.median(intensity) if known else ridge
        ends = [min([ridge, *intensity]) / 3, ridge, max([ridge, middle, *intensity]) * 3]
        heights = [min(top['flops_per_second'], end * top['bytes_per_second']) / 1e9 for end in ends]
        roofline.plot(ends, heights, color=f'C{number}')
    roofline.set(xlabel='FLOP per byte', ylabel='GFLOP/s per device', xscale='log', yscale='log', title='roofline')
    roofline.legend()
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')

"""The picture of a network's graph: a row for each step of its longest path, a lane for each branch."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import jax

from jaxcolor import files
from jaxcolor.evaluation.network_graph import Node, consumers, network_graph

# Inches.
_WIDTH, _ROW_GAP, _LANE_GAP, _LINE, _CHANNEL = 3.5, 0.3, 0.7, 0.14, 0.13
_CHARACTERS = 68  # of a line in a box


def draw_network(network: nn.Module, inputs: Sequence[jax.ShapeDtypeStruct], path: str | os.PathLike) -> None:
    """Draws a network as boxes of layers with their output shapes and numbers of parameters, and arrows between them.

    Args:
        network: a Flax module.
        inputs: shapes and dtypes of its inputs, (B, ...) each.
        path: of the picture, a PNG or SVG by its suffix.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    nodes = network_graph(network, inputs)
    rows, lanes = place(nodes)
    lines = {id(node): _lines(node) for node in nodes}
    height = _LINE * (max(map(len, lines.values())) + 0.6)
    x = {id(node): (lanes[id(node)] + 0.5) * (_WIDTH + _LANE_GAP) for node in nodes}
    y = {id(node): -rows[id(node)] * (height + _ROW_GAP) for node in nodes}
    total = f'{type(network).__name__}: {sum(node.parameters for node in nodes):,} parameters'
    left, right = -_LANE_GAP / 2, (max(lanes.values()) + 1) * (_WIDTH + _LANE_GAP)
    top, bottom = height / 2 + 0.5, min(y.values()) - height / 2 - 0.15

    figure = Figure(figsize=(right - left, top - bottom))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.axis('off')
    axes.text(left + 0.15, top - 0.2, total, fontsize=11, weight='bold', va='center')
    for route in routes(nodes, rows, lanes):
        points = [
            (x[id(a)] + across * _WIDTH / 2 + right, y[id(b)] + up * height / 2 + above)
            for (a, across, right), (b, up, above) in route
        ]
        axes.plot(*zip(*points, strict=True), color='0.35', linewidth=1, zorder=1, solid_joinstyle='round')
        arrow = {'arrowstyle': '-|>', 'color': '0.35', 'shrinkA': 0, 'shrinkB': 0}
        axes.annotate('', points[-1], points[-2], arrowprops=arrow, zorder=1)

    groups = list(dict.fromkeys(node.group for node in nodes if node.group))
    for node in nodes:
        is_layer = node.kind == 'layer'
        color = colormaps['Pastel1' if len(groups) < 9 else 'tab20'](groups.index(node.group)) if is_layer else 'white'
        corner = x[id(node)] - _WIDTH / 2, y[id(node)] - height / 2
        style = {'facecolor': color, 'edgecolor': '0.35', 'linestyle': '--' if node.kind == 'operation' else '-'}
        axes.add_patch(_box(corner, height, style))
        text = lines[id(node)]
        for i, line in enumerate(text):
            axes.text(
                x[id(node)],
                y[id(node)] + _LINE * ((len(text) - 1) / 2 - i),
                line,
                fontsize=8 if i == 0 else 7,
                weight='bold' if i == 0 and is_layer else 'normal',
                ha='center',
                va='center',
            )
    path = Path(path)
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format=path.suffix[1:])


def _box(corner, height, style):
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(corner, _WIDTH, height, boxstyle='round,pad=0,rounding_size=0.08', zorder=2, **style)


def _lines(node: Node) -> list[str]:
    """The text of a box, line by line."""
    shape = '×'.join(map(str, node.shape)) or 'a number'
    if node.kind != 'layer':
        return [node.title, shape]
    figures = f'{shape}, {node.parameters:,} parameters' if node.parameters else f'{shape}, the same parameters again'
    return [node.title, *textwrap.wrap(node.text, _CHARACTERS), figures]


def place(nodes: Sequence[Node]) -> tuple[dict[int, int], dict[int, int]]:
    """Where nodes stand -> ({id: row}, {id: lane}), from the top and the left. No two stand at one place.

    A row is one below the lowest source; inputs stand one above their first use. The branch of the longest way to an output
    goes on in its source's lane, others get one that is free.

    Args:
        nodes: each after its sources.
    """
    users = consumers(nodes)
    rows: dict[int, int] = {}
    heights: dict[int, int] = {}
    for node in nodes:
        rows[id(node)] = max((rows[id(source)] + 1 for source in node.sources), default=0)
    for node in reversed(nodes):
        heights[id(node)] = max((heights[id(user)] + 1 for user in users[id(node)]), default=0)
    for node in nodes:
        if node.kind == 'input' and users[id(node)]:
            rows[id(node)] = min(rows[id(user)] for user in users[id(node)]) - 1

    lanes: dict[int, int] = {}
    last: list[Node] = []  # of each lane
    free_from: list[int] = []  # the first row of each lane that no arrow down it needs
    for node in sorted(nodes, key=lambda node: (rows[id(node)], -heights[id(node)])):
        row = rows[id(node)]
        above = sorted(node.sources, key=lambda source: (source.kind == 'input', -rows[id(source)]))
        lane = next((lanes[id(source)] for source in above if last[lanes[id(source)]] is source), None)
        if lane is None:
            lane = next((i for i, free in enumerate(free_from) if free <= row), len(last))
        if lane == len(last):
            last.append(node)
            free_from.append(0)
        lanes[id(node)], last[lane] = lane, node
        free_from[lane] = max([row + 1, *(rows[id(user)] + 1 for user in users[id(node)])])
    return rows, lanes


# A point of an arrow: half widths and inches to the right of a node's center; half heights and inches above another's.
Point = tuple[tuple[Node, float, float], tuple[Node, float, float]]


def routes(nodes: Sequence[Node], rows: Mapping[int, int], lanes: Mapping[int, int]) -> list[list[Point]]:
    """The arrows' ways around the boxes, of horizontal and vertical lines.

    An arrow goes down its source's lane where that is free, else down a channel beside that lane, on the side of its target;
    then to the side of its target's box, or to its top in the same lane or where boxes or other arrows are in between.

    Args:
        nodes: each after its sources.
        rows: of `place`.
        lanes: of `place`.
    """
    router = _Router(nodes, rows, lanes)
    return [router.route(source, node) for node in nodes for source in node.sources]


class _Router:
    """What arrows use up."""

    def __init__(self, nodes, rows, lanes):
        self.rows, self.lanes, self.users = rows, lanes, consumers(nodes)
        self.taken = {(rows[id(node)], lanes[id(node)]) for node in nodes}
        self.channels = []  # (source, gap between lanes, number in the gap, first row, last row)
        self.runs = []  # horizontal: (source, row, level, from and to lane)

    def route(self, source: Node, node: Node) -> list[Point]:
        """The points of an arrow."""
        (top, bottom), (lane, target) = ([at[id(each)] for each in (source, node)] for at in (self.rows, self.lanes))
        is_clear = not any((row, lane) in self.taken for row in range(top + 1, bottom))
        if is_clear and lane == target:
            return [((source, 0, 0), (source, -1, 0)), ((node, 0, 0), (node, 1, 0))]
        to = 1 if target > lane else -1  # on which side of the source's lane the arrow goes
        side = -1 if target == lane else -to  # of the target's box
        if is_clear and (bottom, lane) not in self.taken:
            down: tuple[Node, float, float] = (source, 0, 0)
            points: list[Point] = [(down, (source, -1, 0))]
        else:
            down = (source, to, to * _CHANNEL * (1 + self._channel(source, lane + (to == 1))))
            points = [((source, to, 0), (source, 0, 0)), (down, (source, 0, 0))]
        level = self._level(source, bottom, lane + (to / 2 if down[1] else 0), target + 0.4 * side)
        if not level:
            return [*points, (down, (node, 0, 0)), ((node, side, 0), (node, 0, 0))]
        height = (node, 1.0, _ROW_GAP * min(0.9, 0.3 + 0.15 * level))
        return [*points, (down, height), ((node, side / 2, 0), height), ((node, side / 2, 0), (node, 1, 0))]

    def _channel(self, source, gap):
        """The number of a channel in the gap to the left of a lane: one for all arrows of a source."""
        first, last = self.rows[id(source)], max(self.rows[id(user)] for user in self.users[id(source)])
        busy = set()
        for other, at, number, start, end in self.channels:
            if at == gap and other is source:
                return number
            if at == gap and start <= last and first <= end:
                busy.add(number)
        number = next(number for number in range(len(busy) + 1) if number not in busy)
        self.channels.append((source, gap, number, first, last))
        return number

    def _level(self, source, row, start, end):
        """0 where the way between two lanes at the height of a row's boxes is free, else the least free level above them."""
        start, end = min(start, end), max(start, end)
        busy = {level for other, at, level, a, b in self.runs if at == row and a < end and start < b and other is not source}
        if any(at == row and start < lane < end for at, lane in self.taken):
            busy.add(0)
        level = next(level for level in range(len(busy) + 1) if level not in busy)
        self.runs.append((source, row, level, start, end))
        return level

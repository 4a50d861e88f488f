"""What the parts of `jaxcolor benchmark --budget` share: the budget, the case, and the compiled steps."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxcolor.benchmark.budget import Budget
from jaxcolor.benchmark.workload import Case, Workload, measure


@dataclasses.dataclass
class Bench:
    """The case of most parts.

    Attributes:
        budget: of the run.
        recipes: (name, whether the extractor's features are cached) of the part `recipes`.
        recipe: the network of most parts.
        batch: photos of a step.
        size: side of the photos in pixels; 0 takes the recipe's.
        ceilings: {precision: `workload.ceilings`} of those that are known.
    """

    budget: Budget
    recipes: tuple[tuple[str, bool], ...] = ()
    recipe: str = 'ltbc'
    batch: int = 128
    size: int = 0
    ceilings: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    _kept: dict[Case, Workload] = dataclasses.field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the default device is a GPU."""
        return jax.default_backend() == 'gpu'

    @property
    def is_full(self) -> bool:
        """Whether the photos have the recipes' own size: false where parts are only tried."""
        return not self.size

    @property
    def float32(self) -> str:
        """The precision of float32 that a training has: TF32 on a GPU."""
        return 'tf32' if self.on_gpu else 'f32'

    def workload(self, **case: Any) -> Workload:
        """The compiled case; fields default to a training step in bfloat16. The two that others compare with are kept."""
        shared = {'recipe': self.recipe, 'batch': self.batch, 'size': self.size, 'precision': 'bf16'}
        wanted = Case(**{**shared, **case})
        if wanted not in self._kept:
            main = [Case(**shared, mode=mode) for mode in ('train', 'infer')]
            for other in [other for other in self._kept if other not in main]:
                self._kept.pop(other).close()
            self._kept[wanted] = Workload(wanted)
        return self._kept[wanted]


def timed(bench: Bench, more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda row: {}, **case: Any) -> None:
    """Times a case of `bench` and writes its row. more: of `measure`'s row, what is added to it."""
    row = measure(bench.workload(**case))
    names = ['recipe', 'mode', 'precision', 'batch', 'size', 'data']
    shown = {name: row[name] for name in names} | ({'cached': True} if row['cached'] else {})
    shown |= {'step_ms': 1e3 * row['step_s'], 'spread': row['spread'], 'images_per_s': row['images_per_second']}
    shown['tflops'] = row['flops_per_second'] / 1e12
    if top := bench.ceilings.get(row['precision']):
        shown['product_share'] = row['flops_per_second'] / top['flops_per_second']
    shown |= more(row)
    shown |= {'memory_gb': row['memory'] and row['memory'] / 1e9, 'moved_gb': row['bytes'] and row['bytes'] / 1e9}
    bench.budget.row(**shown, compile_s=row['compile_s'])

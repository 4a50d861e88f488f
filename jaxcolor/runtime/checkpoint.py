"""Checkpoints of a run, saved by Orbax.

A checkpoint is the folder `checkpoints/STEP`, which appears whole, by one rename. It holds `state` (a TrainState), `data`
(the position of the data iterator) and, as metadata, the config.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from jaxcolor.errors import UserError
from jaxcolor.runtime import cluster

_preservation = ocp.training.preservation_policies
_save_decision = ocp.training.save_decision_policies


class Checkpoints:
    """The checkpoints of one run directory. Saving is asynchronous; leaving the context waits for the last save.

    Args:
        directory: the run's `checkpoints` folder, made if missing.
        keep_best: how many checkpoints with the lowest loss to keep, besides the last two. Two, so that there is one to go
            back to if the last is damaged.
        read_only: makes and deletes nothing, for a run that may be in training.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, keep_best: int = 1, read_only: bool = False) -> None:
        self.directory = Path(directory)
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'the checkpoint folder {directory} cannot be made ({error.strerror}).') from None
        best = _preservation.BestN(
            get_metric_fn=lambda metrics: metrics['loss'],
            reverse=True,  # Orbax keeps the last n of its sorted list
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        context = ocp.Context()
        # By default each array is cut into a slice for each device; for hundreds of small arrays that takes longer than
        # writing them.
        context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
        self._checkpointer = ocp.training.Checkpointer(
            self.directory.absolute(),
            save_decision_policy=_save_decision.FixedIntervalPolicy(1),
            preservation_policy=_preservation.AnyPreservationPolicy([_preservation.LatestN(2), best]),
            cleanup_tmp_directories=not read_only,  # left by saves that were interrupted
            context=context,
        )
        self._response: Any = None  # of the save in progress
        self._unreported: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and jax.process_count() > 1:
            return  # a save would wait for the other processes, and one of them may be dead
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest loss; of the newest if none has a loss."""
        rated = [c for c in self._checkpointer.checkpoints if c.metrics]
        return min(rated, key=lambda c: (c.metrics['loss'], -c.step)).step if rated else self.latest_step

    def save(
        self, step: int, state: Any, data: Mapping[str, int], config: Mapping[str, Any], loss: float | None = None
    ) -> None:
        """Waits for the previous save, then starts this one.

        Args:
            step: the number of steps done.
            state: a TrainState.
            data: the state of the data iterator.
            config: of JSON values.
            loss: on the validation photos; None for a checkpoint that was not evaluated.

        Raises:
            UserError: it cannot be written; earlier checkpoints stay as they are.
        """
        self.wait()
        try:
            self._response = self._checkpointer.save_checkpointables_async(
                step,
                {'state': state, 'data': data},
                metrics=None if loss is None else {'loss': loss},
                custom_metadata={'config': config},
            )
        except OSError as error:
            raise self._save_error(error) from None
        self._unreported.append(step)

    def wait(self) -> None:
        """Waits until the save in progress is on disk. Raises UserError if it cannot be written."""
        if self._response is not None:
            response, self._response = self._response, None
            try:
                response.result()
            except (OSError, ValueError) as error:  # TensorStore reports a full disk as ValueError
                if jax.process_count() > 1 and 'Error writing' not in str(error):
                    raise  # another process died
                raise self._save_error(error) from None

    def newly_saved(self) -> list[int]:
        """The steps whose checkpoints were completed since the last call."""
        saved = [step for step in self._unreported if (self.directory / str(step)).exists()]
        self._unreported = [step for step in self._unreported if step not in saved]
        return saved

    def restore_newest(self, abstract_state: Any, warn: Callable[[str], None]) -> tuple[int, Any, dict[str, int]] | None:
        """Restores the newest readable checkpoint.

        Newer ones that are damaged are moved to the folder `damaged-checkpoints` beside `checkpoints`, so that their steps
        can be saved again.

        Args:
            abstract_state: as for `restore`.
            warn: is called with a line about each damaged checkpoint.

        Returns:
            (step, state, state of the data iterator); None if there is no checkpoint.

        Raises:
            UserError: there are checkpoints, but none is readable.
        """
        steps = sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)
        damaged: list[int] = []
        first_error = None
        while True:
            # Process 0 chooses: on a network file system the others may see older listings.
            step = cluster.broadcast(max((step for step in steps if step not in damaged), default=-1))
            if step == -1:
                if first_error is not None:
                    raise first_error
                return None
            restored = None
            try:
                restored = self.restore(step, abstract_state)
            except UserError as error:
                first_error = first_error or error
                warn(f'jaxcolor: WARNING: {error}')
            if cluster.all_true(restored is not None):
                break
            first_error = first_error or UserError(
                f'the checkpoint {self.directory / str(step)} cannot be read by all processes.'
            )
            damaged.append(step)
        if damaged:
            for bad in damaged:
                self._move_damaged(bad, warn)
            warn(f'jaxcolor: WARNING: going back to the checkpoint before, of step {step}.')
            cluster.barrier('damaged checkpoints moved')
            self._checkpointer.reload()
        assert restored is not None
        return step, *restored

    def _move_damaged(self, step: int, warn: Callable[[str], None]) -> None:
        if jax.process_index() == 0:
            folder = self.directory.parent / 'damaged-checkpoints'
            folder.mkdir(exist_ok=True)
            target = next(p for i in range(10**6) if not (p := folder / (f'{step}.{i}' if i else f'{step}')).exists())
            os.replace(self.directory / str(step), target)
            warn(f'jaxcolor: WARNING: moved the damaged checkpoint of step {step} to {target}.')

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, int]]:
        """Restores the checkpoint of a step.

        Args:
            step: its number.
            abstract_state: a TrainState of `jax.ShapeDtypeStruct`s with shardings, as `abstract` makes it.

        Returns:
            (state, state of the data iterator).

        Raises:
            UserError: the checkpoint is damaged or of another network.
        """
        logging.info('restoring step %d', step)
        try:
            loaded = self._checkpointer.load_checkpointables(step, {'state': abstract_state, 'data': None})
        except (OSError, ValueError, KeyError, TypeError, ocp.errors.InvalidLayoutError) as error:
            reason = ' '.join(str(error).split())[:200]
            raise UserError(
                f'the checkpoint {self.directory / str(step)} cannot be read ({type(error).__name__}: {reason}).'
            ) from error
        return loaded['state'], {name: int(value) for name, value in loaded['data'].items()}

    def _save_error(self, error: Exception) -> UserError:
        reason = ' '.join(str(error).split())[:200]
        return UserError(
            f'a checkpoint cannot be saved to {self.directory} ({reason}); free some space or fix the permissions and run '
            f'the same command again: it resumes from step {self.latest_step or 0}.'
        )


def abstract(state: Any, sharding: jax.sharding.Sharding) -> Any:
    """A tree of arrays -> the same tree of `jax.ShapeDtypeStruct`s with a sharding, as `Checkpoints.restore` takes it."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)

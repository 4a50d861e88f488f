"""Checkpoints of a run: the only room that knows Orbax.

A checkpoint is a folder `checkpoints/STEP` that appears whole, by one rename. It holds `state` (a TrainState), `data`
(where the data iterator stands) and, as its metadata, the config.
"""

import os
from pathlib import Path

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from jaxcolor.errors import UserError
from jaxcolor.runtime import cluster

_keep = ocp.training.preservation_policies
_when = ocp.training.save_decision_policies


def _context():
    """Orbax cuts each array into one slice a device; cutting the hundreds of small ones takes longer than writing them."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    return context


class Checkpoints:
    """The checkpoints of one run directory; saving is asynchronous. A context manager: leaving it finishes the last save.

    Args:
        directory: the run's `checkpoints` folder, made where it is missing.
        keep_best: how many are kept for the lowest loss that they were saved with, beside the last two: one more to
            go back to, should the last turn out to be damaged.
        read_only: for looking at a run that may be in training: nothing is made or cleaned up.
    """

    def __init__(self, directory, keep_best: int = 1, read_only: bool = False):
        self.directory = Path(directory)
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'the checkpoint folder {directory} cannot be made ({error.strerror}).') from None
        best = _keep.BestN(
            get_metric_fn=lambda metrics: metrics['loss'],
            reverse=True,  # Orbax keeps the last n of its sorted list
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        self._checkpointer = ocp.training.Checkpointer(
            self.directory.absolute(),
            save_decision_policy=_when.FixedIntervalPolicy(1),
            preservation_policy=_keep.AnyPreservationPolicy([_keep.LatestN(2), best]),
            cleanup_tmp_directories=not read_only,  # of saves that died under way
            context=_context(),
        )
        self._response, self._unreported = None, []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception) and jax.process_count() > 1:
            return  # a save would wait for the other processes, and one of them may be dead
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the lowest loss; the newest where none was saved with one."""
        rated = [c for c in self._checkpointer.checkpoints if c.metrics]
        return min(rated, key=lambda c: (c.metrics['loss'], -c.step)).step if rated else self.latest_step

    def save(self, step: int, state, data: dict, config: dict, loss: float | None = None):
        """Starts to save, once the save before it is finished. `data` is a dict of ints, `config` one of JSON values.

        Raises:
            UserError: nothing can be written there; checkpoints that were reported saved stand.
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

    def wait(self):
        """Waits until the save under way is on disk."""
        if self._response is not None:
            response, self._response = self._response, None
            try:
                response.result()
            except (OSError, ValueError) as error:  # a full disk reaches us as ValueError, from TensorStore
                if jax.process_count() > 1 and 'Error writing' not in str(error):
                    raise  # another process died
                raise self._save_error(error) from None

    def newly_saved(self) -> list[int]:
        """The steps whose checkpoints have become whole on disk since the last call."""
        saved = [step for step in self._unreported if (self.directory / str(step)).exists()]
        self._unreported = [step for step in self._unreported if step not in saved]
        return saved

    def restore_newest(self, abstract_state, say):
        """The newest checkpoint that can be read: (step, state, the data iterator's place); None where there are none.

        Newer ones that cannot be read are moved to the folder `damaged-checkpoints` beside, so that their steps can be
        saved again, and `say` is told.

        Raises:
            UserError: there are checkpoints, and none can be read.
        """
        steps = sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)
        damaged, failure = [], None
        while True:
            # Process 0 says which: on a network file system the others may see older listings.
            step = cluster.from_first(max((step for step in steps if step not in damaged), default=-1))
            if step == -1:
                if failure is not None:
                    raise failure
                return None
            restored = None
            try:
                restored = self.restore(step, abstract_state)
            except UserError as error:
                failure = failure or error
                say(f'jaxcolor: WARNING: {error}')
            if cluster.all_say(restored is not None):
                break
            failure = failure or UserError(f'the checkpoint {self.directory / str(step)} cannot be read by all processes.')
            damaged.append(step)
        if damaged:
            for bad in damaged:
                self._set_aside(bad, say)
            say(f'jaxcolor: WARNING: going back to the checkpoint before, of step {step}.')
            cluster.wait_for_all('damaged checkpoints set aside')
            self._checkpointer.reload()
        return step, *restored

    def _set_aside(self, step, say):
        if jax.process_index() == 0:
            aside = self.directory.parent / 'damaged-checkpoints'
            aside.mkdir(exist_ok=True)
            place = next(p for i in range(10**6) if not (p := aside / (f'{step}.{i}' if i else f'{step}')).exists())
            os.replace(self.directory / str(step), place)
            say(f'jaxcolor: WARNING: moved the damaged checkpoint of step {step} to {place}.')

    def restore(self, step: int, abstract_state):
        """The state and the data iterator's place at a step.

        Args:
            abstract_state: a TrainState of `jax.ShapeDtypeStruct`s, whose shardings say where the arrays go.

        Raises:
            UserError: the checkpoint does not fit or is damaged.
        """
        logging.info('restoring step %d', step)
        try:
            parts = self._checkpointer.load_checkpointables(step, {'state': abstract_state, 'data': None})
        except (OSError, ValueError, KeyError, TypeError, ocp.errors.InvalidLayoutError) as error:
            reason = ' '.join(str(error).split())[:200]
            raise UserError(
                f'the checkpoint {self.directory / str(step)} cannot be read ({type(error).__name__}: {reason}).'
            ) from error
        return parts['state'], {name: int(value) for name, value in parts['data'].items()}

    def _save_error(self, error):
        reason = ' '.join(str(error).split())[:200]
        return UserError(
            f'a checkpoint cannot be saved to {self.directory} ({reason}); make room or mend its rights and run the '
            f'same command again: it goes on from step {self.latest_step or 0}.'
        )


def abstract(state, sharding):
    """The shapes and dtypes of a state, every array to be placed as `sharding` says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)

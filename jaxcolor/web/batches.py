"""One thread runs the network for all requests: photos of one shape that wait at the same time go together."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcolor.errors import UserError
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.runtime.parallel import compiler_options

MAX_BATCH = 8
# How long the first photo of a batch waits for others that are being read. The network takes longer for one.
_LINGER = 0.01


class _Waiting(NamedTuple):
    """A photo that waits for the network."""

    predict: Callable[[list[np.ndarray]], list[np.ndarray]]
    lightness: np.ndarray  # (1, h, w, 1)
    result: Future

    @property
    def key(self) -> tuple:
        return self.predict, self.lightness.shape


class Batches:
    """A queue before the network, and the thread that empties it."""

    def __init__(self) -> None:
        self.batches, self.photos = 0, 0  # that the network has seen
        self._coming, self._here = 0, threading.local()  # photos that are being read; whether this thread reads one
        self._queue, self._change, self._is_open = deque[_Waiting](), threading.Condition(threading.RLock()), True
        self._thread = threading.Thread(target=self._run, name='jaxcolor-network', daemon=True)
        self._thread.start()

    @property
    def mean_batch(self) -> float:
        """Photos a batch, so far; 0 before the first."""
        return self.photos / self.batches if self.batches else 0.0

    @contextlib.contextmanager
    def coming(self, left: threading.Event | None = None) -> Iterator[None]:
        """Within it, this thread reads a photo and then predicts; a batch waits a little for that.

        Args:
            left: set when nobody waits for the photo any more; `check` then ends the work on it.
        """
        self._here.left = left
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)
            self._here.left = None

    def check(self) -> None:
        """Raises UserError if nobody waits for this thread's photo any more."""
        left = getattr(self._here, 'left', None)
        if left is not None and left.is_set():
            raise UserError('nobody waits for this photo any more.')

    def _count(self, change):
        with self._change:
            if getattr(self._here, 'is_reading', False) or change > 0:
                self._here.is_reading = change > 0
                self._coming += change
                self._change.notify_all()

    def predict(self, predict: Callable[[list[np.ndarray]], list[np.ndarray]], lightness: np.ndarray) -> np.ndarray:
        """Waits for the network. Called by many threads.

        Args:
            predict: what runs it on up to MAX_BATCH photos of one shape.
            lightness: L*, float32 (1, h, w, 1).

        Returns:
            a*b*, float32 (1, h, w, 2).

        Raises:
            Exception: whatever the network raises.
        """
        waiting = _Waiting(predict, lightness, Future())
        with self._change:
            self._queue.append(waiting)
            self._count(-1)
            self._change.notify_all()
        return waiting.result.result()

    def close(self) -> None:
        """Ends the thread, after what is waiting."""
        with self._change:
            self._is_open = False
            self._change.notify_all()
        self._thread.join()

    def _run(self):
        while batch := self._next():
            try:
                results = batch[0].predict([each.lightness for each in batch])
            except Exception as error:
                for each in batch:
                    each.result.set_exception(error)
                continue
            self.batches, self.photos = self.batches + 1, self.photos + len(batch)
            for each, result in zip(batch, results, strict=True):
                each.result.set_result(result)

    def _next(self):
        """The next batch, of the shape that has waited longest; empty at the end."""
        with self._change:
            self._change.wait_for(lambda: self._queue or not self._is_open)
            if not self._queue:
                return []
            key = self._queue[0].key
            alike = lambda: [each for each in self._queue if each.key == key][:MAX_BATCH]  # noqa: E731
            self._change.wait_for(lambda: len(alike()) == MAX_BATCH or not self._coming, _LINGER)
            batch = alike()
            self._queue = deque(each for each in self._queue if not any(each is one for one in batch))
        return batch


class QueuedColorizer(Colorizer):
    """A network whose predictions for photos without a style go through a queue."""

    def __init__(self, batches: Batches, *arguments: Any, **options: Any) -> None:
        """Loads the network.

        Args:
            batches: the queue.
            *arguments, **options: of `Colorizer`.

        Raises:
            UserError: as `Colorizer`.
        """
        super().__init__(*arguments, **options)
        self._batches = batches
        self._each = jax.jit(self._predict_each, compiler_options=compiler_options())
        self._batch = self._predict_batch  # one object: what is alike waits together

    def predict_ab(self, lightness: np.ndarray, style: np.ndarray | None = None, variant: int = 0) -> np.ndarray:
        """As `Colorizer.predict_ab`, to the bit on CPUs. Raises UserError if nobody waits for the photo any more."""
        self._batches.check()
        if style is not None or variant or len(lightness) > 1 or self.task.takes_noise:
            return super().predict_ab(lightness, style, variant)
        return np.float32(self.chroma) * self._batches.predict(self._batch, lightness)

    def _predict_batch(self, photos):
        """L*, (1, h, w, 1) each -> a*b*, (1, h, w, 2) each, without the gain."""
        # Padded, so that few shapes are compiled. On CPUs the padding is not computed.
        size = MAX_BATCH if self.batch_size == 1 else 1 << (len(photos) - 1).bit_length()
        lightness = np.zeros((size, *photos[0].shape[1:]), np.float32)
        lightness[: len(photos)] = np.concatenate(photos)
        with self.on_device():
            if self.batch_size == 1:
                ab = np.asarray(self._each(self._folded, lightness, np.int32(len(photos))))
            else:
                ab = self._run(lightness, jax.random.PRNGKey(0))
        return [ab[i : i + 1] for i in range(len(photos))]

    def _predict_each(self, state, lightness, count):
        """The first photos of a batch one after the other, in one program: a batch would round otherwise than one."""
        predict = lambda one: self.task.predict(state, one, jax.random.PRNGKey(0))  # noqa: E731

        def step(i, out):
            return lax.dynamic_update_slice_in_dim(out, predict(lax.dynamic_slice_in_dim(lightness, i, 1)), i, 0)

        one = jax.eval_shape(predict, lightness[:1])
        return lax.fori_loop(0, count, step, jnp.zeros((len(lightness), *one.shape[1:]), one.dtype))

"""jaxcolor: train and run the convolutional networks that colorize gray photographs, in JAX and Flax.

From Python: `load` colors photos; `prepare`, `train` and `evaluate` do what the commands of these names do. What the user
gave and cannot be used is a `UserError`. Importing this package does not import JAX.
"""

from os import PathLike
from typing import TYPE_CHECKING, Any

from jaxcolor.errors import UserError

if TYPE_CHECKING:
    import jax

    from jaxcolor.evaluation.command import evaluate as evaluate
    from jaxcolor.inference.api import PhotoColorizer
    from jaxcolor.prepare.command import prepare_photos as prepare
    from jaxcolor.train import train_recipe as train

__all__ = ['UserError', 'evaluate', 'load', 'prepare', 'train']
__version__ = '0.1.0'


def load(
    model: str | PathLike[str] | None = None,
    *,
    device: 'str | jax.Device | None' = None,
    step: int | None = None,
    size: int = 0,
    chroma: float = 1.0,
    faithful: bool = False,
    render_factor: int = 0,
    max_megapixels: float = 200.0,
) -> 'PhotoColorizer':
    """A colorizer of photos: `load()('gray.jpg').save('color.jpg')`.

    What it compiles is kept on disk, in the folder $JAXCOLOR_CACHE or the user's cache folder, unless JAX has one already.

    Args:
        model: a name that `jaxcolor models` lists (by default 'ltbc-lite'), the folder of an exported model, a run
            directory, or a published file.
        device: 'cpu', 'gpu', 'gpu:1' or one of `jax.devices()`; None for JAX's default.
        step: of the checkpoint; None for the one with the lowest validation loss.
        size: pixels of the shorter side of the network's input; 0 for the size that it was trained on.
        chroma: multiplies the predicted a*b*, in [0, 10].
        faithful: color as the network's authors do.
        render_factor: of DeOldify, with `faithful`.
        max_megapixels: refuses larger photos, where they are read from files or bytes.

    Returns:
        A `jaxcolor.inference.api.PhotoColorizer`; its `__call__` says what it takes.

    Raises:
        UserError: there is no such model or device, or an argument is out of its range.
    """
    from jaxcolor.config import DEFAULT_MODEL
    from jaxcolor.inference.api import PhotoColorizer  # JAX starts only where it is used
    from jaxcolor.inference.colorizer import Colorizer
    from jaxcolor.runtime.cache import enable_compilation_cache

    enable_compilation_cache()
    network = Colorizer(
        DEFAULT_MODEL if model is None else model,
        step,
        size,
        chroma=chroma,
        faithful=faithful,
        render_factor=render_factor,
        device=device,
    )
    return PhotoColorizer(network, max_megapixels)


def __getattr__(name: str) -> Any:
    """`train`, `prepare` and `evaluate`, imported where they are used: JAX starts only there.

    `train` and `prepare` are modules, too, which can be called (`jaxcolor.callables` says why).
    """
    if name == 'train':
        import jaxcolor.train

        return jaxcolor.train
    if name == 'prepare':
        import jaxcolor.prepare

        return jaxcolor.prepare
    if name == 'evaluate':
        from jaxcolor.evaluation.command import evaluate

        return evaluate
    raise AttributeError(f"module 'jaxcolor' has no attribute {name!r}")

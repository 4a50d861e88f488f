"""jaxcolor: train and run the convolutional networks that colorize gray photographs, in JAX and Flax."""

from os import PathLike
from typing import TYPE_CHECKING

from jaxcolor.errors import UserError

if TYPE_CHECKING:
    from jaxcolor.inference.colorizer import Colorizer

__all__ = ['UserError', 'load']
__version__ = '0.1.0'


def load(model: str | PathLike | None = None) -> 'Colorizer':
    """A colorizer of photos: `load()(PIL.Image.open('gray.jpg')).save('color.jpg')`.

    Args:
        model: a name that `jaxcolor models` lists (by default 'ltbc-lite'), the folder of an exported model, a run
            directory, or a published file.

    Returns:
        A `jaxcolor.inference.colorizer.Colorizer`.

    Raises:
        UserError: there is no such model.
    """
    from jaxcolor.config import DEFAULT_MODEL
    from jaxcolor.inference.colorizer import Colorizer  # JAX starts only where it is used

    return Colorizer(model or DEFAULT_MODEL)

"""jaxcolor: train and run the convolutional networks that colorize gray photographs, in JAX and Flax."""

__version__ = '0.1.0'


def load(model=None):
    """A colorizer of a photo: `load()(PIL.Image.open('gray.jpg')).save('colour.jpg')`.

    model: the name of one that comes with jaxcolor (`jaxcolor models` lists them; by default 'ltbc-compact'), the folder of
    an exported model, or a run directory.

    Returns a `jaxcolor.colorize.Colorizer`. Raises `jaxcolor.errors.UserError` where there is no such model.
    """
    from jaxcolor.weights import export
    from jaxcolor.inference.colorize import Colorizer  # JAX starts only where it is used

    return Colorizer(model or exported.DEFAULT)

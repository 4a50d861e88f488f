"""jaxcolor: train and run the convolutional networks that colorize gray photographs, in JAX and Flax."""

__version__ = '0.1.0'


def load(model):
    """A colorizer of a run directory or of an exported model: `load(RUN)(PIL.Image.open('gray.jpg')).save('colour.jpg')`.

    Returns a `jaxcolor.colorize.Colorizer`. Raises `jaxcolor.errors.UserError` where there is no such model.
    """
    from jaxcolor.colorize import Colorizer  # JAX starts only where it is used

    return Colorizer(model)

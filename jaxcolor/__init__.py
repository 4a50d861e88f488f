"""jaxcolor: train and run the convolutional networks that colorize gray photographs, in JAX and Flax."""

__version__ = '0.1.0'

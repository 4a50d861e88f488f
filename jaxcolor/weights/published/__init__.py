"""Published networks, from their published files."""

from jaxcolor.weights.published.converted import Converted

__all__ = ['Converted']

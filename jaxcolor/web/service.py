"""What the server does with photos: the models that it offers, coloring, previews. It knows nothing of HTTP."""

import contextlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.api import ColoredFile, PhotoColorizer
from jaxcolor.inference.hints import Hints, read_points
from jaxcolor.inference.photos import read_photo
from jaxcolor.prepare.decode import FORMATS, pillow_unguarded
from jaxcolor.web.batches import Batches, QueuedColorizer

# What is compiled before the server says that it is ready: the shape of most photos.
_WARM_UP = (96, 128)
_PREVIEW = 1600  # pixels of the longer side
# Of the photos that are worked on at a time; a single larger one is let through. It bounds the memory that they take.
_MAX_PIXELS = 2**27


class Request(NamedTuple):
    """What a client asks for."""

    name: str  # of the photo's file
    data: bytes  # of the photo's file
    model: str  # '' for the default
    chroma: float
    hints: str  # as of `jaxcolor colorize --hints`, points only; '' for none
    style: bytes  # another photo's file; empty for none
    left: threading.Event  # set when the client waits no more: a photo of many frames is then left where it is


class _Room:
    """Lets threads in as long as their photos together have no more than _MAX_PIXELS."""

    def __init__(self, most):
        self._taken, self._change = 0, threading.Condition()
        self._most = most  # pixels of a photo; one of more is refused as soon as it is read

    @contextlib.contextmanager
    def taken_by(self, *photos):
        """photos: bytes of files."""
        pixels = sum(min(_pixels(photo), self._most) for photo in photos)
        with self._change:
            self._change.wait_for(lambda: not self._taken or self._taken + pixels <= _MAX_PIXELS)
            self._taken += pixels
        try:
            yield
        finally:
            with self._change:
                self._taken -= pixels
                self._change.notify_all()


def _pixels(data):
    """The number of pixels in the headers of a photo's frames; 0 if they cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            return image.width * image.height * getattr(image, 'n_frames', 1)
    except Exception:  # reading the photo reports what is wrong with it
        return 0


class Service:
    """Colors photos with the models that it was given. Threads share it."""

    def __init__(self, models: Sequence[str], device: str | None = None, max_megapixels: float = 100.0) -> None:
        """Loads the models, and compiles the first for a common shape.

        Args:
            models: as `Colorizer` takes them; clients name them by the last part of a path.
            device: as of `Colorizer`.
            max_megapixels: refuses larger photos.

        Raises:
            UserError: there is no such model or device, or two have the same name.
        """
        self.names = [Path(model).name or str(model) for model in models]
        if len(set(self.names)) < len(self.names):
            raise UserError(f'two of the models have the same name: {", ".join(self.names)}.')
        self.max_megapixels, self.batches, self._room = max_megapixels, Batches(), _Room(int(max_megapixels * 1e6))
        networks = [QueuedColorizer(self.batches, model, device=device) for model in models]
        self._colorizers = {
            name: PhotoColorizer(network, max_megapixels) for name, network in zip(self.names, networks, strict=True)
        }
        self.colorizer('')(np.zeros(_WARM_UP, np.uint8))

    def colorizer(self, name: str) -> PhotoColorizer:
        """A model by its name; '' is the first. Raises UserError: there is none of this name."""
        try:
            return self._colorizers[name or self.names[0]]
        except KeyError:
            raise UserError(f'there is no model {name!r} here; there is {", ".join(self.names)}.') from None

    def takes_style(self, name: str) -> bool:
        """Whether a model has global features. Raises UserError: there is none of this name."""
        return hasattr(self.colorizer(name).network.task.network, 'global_features')

    def close(self) -> None:
        """Ends the network's thread."""
        self.batches.close()

    def color(self, request: Request) -> ColoredFile:
        """Colors a photo as `jaxcolor colorize` does, to the byte.

        Raises:
            UserError: the photo or an option cannot be used.
        """
        points = read_points(request.hints) if request.hints else ()
        if points is None:
            raise UserError('the hints are not points, which are written x,y,#rrggbb;x,y,#rrggbb.')
        hints = Hints(points) if points else None
        colorizer = self.colorizer(request.model)
        with pillow_unguarded(), self._room.taken_by(request.data, request.style), self.batches.coming(request.left):
            style = read_photo('the style photo', self.max_megapixels, request.style) if request.style else None
            return colorizer.color_file(request.data, request.name, style=style, hints=hints, chroma=request.chroma)

    def preview(self, name: str, data: bytes) -> tuple[bytes, tuple[int, int]]:
        """A photo as a JPEG that every browser shows, of at most 1600 pixels a side; and its own size (W, H), upright.

        Raises:
            UserError: the photo cannot be read.
        """
        with pillow_unguarded(), self._room.taken_by(data):
            image = read_photo(name, self.max_megapixels, data)
        size, file = image.size, io.BytesIO()
        image.thumbnail((_PREVIEW, _PREVIEW), Image.Resampling.BOX)
        image.convert('RGB').save(file, 'JPEG', quality=90)
        return file.getvalue(), size

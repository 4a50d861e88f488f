"""Zhang et al.'s published networks: eccv16 (2016) and siggraph17 (2017), from the state dicts of their PyTorch code."""

from collections.abc import Mapping

import numpy as np

from jaxcolor import color
from jaxcolor import config as fields
from jaxcolor.models.eccv16 import CLASSES, ECCV16, TEMPERATURE
from jaxcolor.models.siggraph17 import SIGGRAPH17
from jaxcolor.models.zhang_layers import AB_SCALE
from jaxcolor.weights.published.converted import Converted, from_state_dict, variable_shapes
from jaxcolor.weights.published.layers import Names, batch_norm, layer

# By how much a color of the file may differ from its class, in units of a*b*; half precision rounds by 0.03.
_TOLERANCE = 0.1
# Of the first seven blocks, how many convolutions they have.
_COUNTS = (2, 2, 3, 3, 3, 3, 3)


def convert(arrays: Mapping[str, np.ndarray], width: float = 1.0) -> Converted:
    """Converts a state dict of eccv16 or siggraph17, told apart by their keys.

    eccv16 becomes a network of 313 classes of colors, where the colors that the file holds for its classes are those of the
    paper; its last kernel is multiplied by the paper's temperature, which it was divided by when it was published. If they
    are others, it becomes a network whose a*b* are the mean of the file's colors.

    Args:
        arrays: {name: array} of the file.
        width: multiplies the filters of every layer but the outputs; that of the published files is 1.

    Raises:
        UserError: an array is missing, has another shape, or belongs to no layer; the sentence names it.
    """
    if any(name.endswith('model1.0.weight') and array.shape[1:2] == (4,) for name, array in arrays.items()):
        return _siggraph17(arrays, width)
    return _eccv16(arrays, width)


def _eccv16(arrays: Mapping[str, np.ndarray], width: float) -> Converted:
    names = {
        **_encoder_names(),
        **layer('up', 'model8.0'),
        **layer('last/conv_0', 'model8.2'),
        **layer('last/conv_1', 'model8.4'),
        **layer('classes', 'model8.6'),
        ('params', 'colors', 'kernel'): 'model_out.weight',  # applied to the likelihoods
    }
    shapes = variable_shapes(ECCV16(width, color_classes=0), (1, 8, 8, 1))
    error = 'it does not fit eccv16'
    params, model_state = from_state_dict(names, arrays, shapes, error, [('params', 'up', 'kernel')])
    model, notes = fields.eccv16(), []
    model.width = width
    order = _order(AB_SCALE * params['colors']['kernel'][0, 0])
    if order is None:
        model.color_classes = 0
        task = fields.regression()
        task.alpha = 0.0
        notes.append(
            f'The colors of its {CLASSES} classes are not those of the paper, so it is a regression, to the mean of the '
            "file's own colors."
        )
    else:
        del params['colors']
        params['classes'] = {name: TEMPERATURE * array[..., order] for name, array in params['classes'].items()}
        task = fields.color_classes()
        task.temperature = TEMPERATURE
        model_state['color_prior'] = {'share': np.full(CLASSES, 1 / CLASSES, np.float32)}
        notes.append(f'The colors of its {CLASSES} classes are those of the paper; task.temperature is {TEMPERATURE}.')
    return Converted(model.to_dict(), task.to_dict(), params, model_state, notes)


def _order(colors):
    """a*b* (classes, 2) -> of each of the paper's classes, which of them is its color; None if they are others."""
    centers = color.zhang_class_centers()
    distance = np.abs(centers[:, None] - colors).max(axis=-1)
    order = distance.argmin(axis=1)
    return order if distance.min(axis=1).max() <= _TOLERANCE else None


def _siggraph17(arrays: Mapping[str, np.ndarray], width: float) -> Converted:
    names = {
        **_encoder_names(),
        **layer('up_8', 'model8up.0'),
        **layer('skip_8', 'model3short8.0'),
        **layer('block_8/conv_0', 'model8.1'),
        **layer('block_8/conv_1', 'model8.3'),
        **batch_norm('block_8/norm', 'model8.5'),
        **layer('up_9', 'model9up.0'),
        **layer('skip_9', 'model2short9.0'),
        **layer('block_9/conv_0', 'model9.1'),
        **batch_norm('block_9/norm', 'model9.3'),
        **layer('up_10', 'model10up.0'),
        **layer('skip_10', 'model1short10.0'),
        **layer('block_10/conv_0', 'model10.1'),
        **layer('output', 'model_out.0'),
    }
    kept = {name: array for name, array in arrays.items() if 'model_class.' not in name}
    shapes = variable_shapes(SIGGRAPH17(width), (1, 8, 8, 1))
    transposed = [('params', up, 'kernel') for up in ('up_8', 'up_9', 'up_10')]
    params, model_state = from_state_dict(names, kept, shapes, 'it does not fit siggraph17', transposed)
    model, task, notes = fields.siggraph17(), fields.regression(), []
    model.width, task.alpha = width, 0.0
    if len(kept) < len(arrays):
        notes.append('Its layer model_class, which nothing follows from, was left out.')
    return Converted(model.to_dict(), task.to_dict(), params, model_state, notes)


def _encoder_names() -> Names:
    """The first seven blocks: in the file, a convolution is followed by its ReLU, the last one by the batch norm as well."""
    names: Names = {}
    for i, count in enumerate(_COUNTS):
        for j in range(count):
            names |= layer(f'block_{i}/conv_{j}', f'model{i + 1}.{2 * j}')
        names |= batch_norm(f'block_{i}/norm', f'model{i + 1}.{2 * count}')
    return names

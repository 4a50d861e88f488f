"""What a converter of a published file returns, and what the converters share."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxcolor.weights.convert import VariablePath, torch_to_flax


class Converted(NamedTuple):
    """A published network as jaxcolor's.

    model, task: the fields of the config's sections `model` and `task`, all of them.
    params, model_state: nested dicts of float32 arrays, as the task's state has them.
    notes: sentences for the user: what was found in the file, and what of it was left out.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    params: dict[str, Any]
    model_state: dict[str, Any]
    notes: list[str]


def variable_shapes(network: nn.Module, *inputs: tuple[int, ...]) -> dict[VariablePath, tuple[int, ...]]:
    """{path: shape} of a network's variables, which are not allocated; inputs: the shapes of what it takes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
    variables = jax.eval_shape(network.init, jax.random.key(0), *arrays)
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables).items()}


def from_state_dict(
    names: Mapping[VariablePath, str],
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[VariablePath, tuple[int, ...]],
    error: str,
    transposed: Collection[VariablePath] = (),
    flattened: Mapping[VariablePath, tuple[int, int, int]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of a network from a PyTorch state dict.

    Args:
        names: {path of a variable: name in the file}, in network order.
        arrays: {name: array} of the file, all of which `names` must use.
        shapes: {path: shape} of the network's variables.
        error: beginning of the error sentence.
        transposed, flattened: as for `convert.torch_to_flax`.

    Returns:
        params, and the other collections by name: nested dicts of float32 arrays.

    Raises:
        UserError: as `convert.torch_to_flax`.
    """
    variables = torch_to_flax(names, arrays, shapes, error, flattened or {}, transposed)
    params, model_state = {}, {}
    for path, array in variables.items():
        if path[0] == 'params':
            params[path[1:]] = array
        else:
            model_state[path] = array
    return flax.traverse_util.unflatten_dict(params), flax.traverse_util.unflatten_dict(model_state)

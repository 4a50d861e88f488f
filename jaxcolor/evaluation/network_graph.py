"""The graph of a network, from its trace: layers, what else is computed between them, and what flows where."""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
from jax.extend.core import Literal

from jaxcolor.models.cpu_kernels import only_cpu_kernels

_SCOPE = 'jaxcolor_layer_'  # of a layer's equations, with the number of its node
_KINDS = {
    'ConvBlock': 'convolution',
    'Conv': 'convolution',
    'DeconvBlock': 'transposed convolution',
    'ConvTranspose': 'transposed convolution',
    'DenseBlock': 'dense',
    'Dense': 'dense',
    'BatchNorm': 'batch norm',
    'Fusion': 'fusion',
    'DepthwiseConv': 'depthwise convolution',
    'LayerNorm': 'layer norm',
    'Gain': 'learned gain',
    'Learned': 'learned vectors',
    'Enlarge': 'convolution, mixed by color',
}
# Equations by their names in a trace.
_ACTIVATIONS = {'relu': 'relu', 'leaky relu': 'leaky relu', 'tanh': 'tanh', 'sigmoid': 'sigmoid', 'logistic': 'sigmoid'}
_OPERATIONS = {'broadcast in dim': 'repeat', 'squeeze': 'reshape'}


@dataclasses.dataclass
class Node:
    """A box of the graph.

    Attributes:
        kind: 'input', 'layer', 'operation' (computes without parameters) or 'output'.
        title: the layer's path, the operation's name, or the name of the input or output.
        text: what the layer does, '' for others.
        shape: of one photo's result.
        parameters: number of the layer's; 0 where it is called again, with the parameters of a node before it.
        group: of layers that belong together.
        sources: the nodes that it takes its inputs from.
    """

    kind: str
    title: str
    shape: tuple[int, ...]
    text: str = ''
    parameters: int = 0
    group: str = ''
    sources: list['Node'] = dataclasses.field(default_factory=list)


def network_graph(network: nn.Module, inputs: Sequence[jax.ShapeDtypeStruct]) -> list[Node]:
    """Traces a network, without computing anything.

    A layer is a module with one kernel at most, such as a convolution with its batch norm and activation. What is computed
    between layers is a node of its own where it joins several inputs (such as a concatenation) or changes the shape.

    Args:
        network: a Flax module, called without further arguments.
        inputs: shapes and dtypes of its inputs, (B, ...) each.

    Returns:
        The nodes, each after its sources.
    """
    layers: list[Node] = []
    counted: set[tuple[str, ...]] = set()
    is_inside = False  # a layer

    def watch(next_function, args, kwargs, context):
        nonlocal is_inside
        module = context.module
        params = module.variables.get('params', {})
        # Only the outermost module of one kernel is a layer: what is inside has its scope.
        if context.method_name != '__call__' or is_inside or not params or len(_kernels(params)) > 1:
            return next_function(*args, **kwargs)
        is_inside, number = True, len(layers)
        with jax.named_scope(f'{_SCOPE}{number}_'):
            result = next_function(*args, **kwargs)
        is_inside = False
        layers.append(_layer(module, params, result, is_again=module.path in counted))
        counted.add(module.path)
        return result

    variables = jax.eval_shape(network.init, jax.random.PRNGKey(0), *inputs)

    def apply(variables, *inputs):
        with nn.intercept_methods(watch), only_cpu_kernels(()):
            return network.apply(variables, *inputs)

    closed, outputs = jax.make_jaxpr(apply, return_shape=True)(variables, *inputs)
    names = list(inspect.signature(network.__call__).parameters)
    nodes = [Node('input', name, each.shape[1:]) for name, each in zip(names, inputs, strict=False)]
    # What each variable comes from: one node, or none for parameters and constants.
    sources: dict[Any, list[Node]] = {}
    first = len(closed.jaxpr.invars) - len(inputs)
    sources |= {variable: [node] for variable, node in zip(closed.jaxpr.invars[first:], nodes, strict=True)}

    for equation in closed.jaxpr.eqns:
        taken = [x for x in equation.invars if not isinstance(x, Literal) and sources.get(x)]
        found = _unique(node for variable in taken for node in sources[variable])
        scope = re.search(rf'{_SCOPE}(\d+)_', str(equation.source_info.name_stack))
        if scope:
            node = layers[int(scope[1])]
            node.sources = _unique([*node.sources, *(each for each in found if each is not node)])
            if not any(node is other for other in nodes):
                nodes.append(node)
            found = [node]
        elif found:
            shape, name = equation.outvars[0].aval.shape[1:], _name(equation)
            if name in _ACTIVATIONS and len(found) == 1 and found[0].kind == 'layer':
                found[0].text += f', {_ACTIVATIONS[name]}'
            elif len(found) > 1 or all(shape != variable.aval.shape[1:] for variable in taken):
                found = [Node('operation', _OPERATIONS.get(name, name), shape, sources=found)]
                nodes += found
        sources |= dict.fromkeys(equation.outvars, found)

    for (path, each), variable in zip(jax.tree_util.tree_leaves_with_path(outputs), closed.jaxpr.outvars, strict=True):
        name = ' '.join(str(key.idx + 1 if hasattr(key, 'idx') else getattr(key, 'key', key)) for key in path)
        nodes.append(Node('output', f'output {name}'.strip(), each.shape[1:], sources=sources.get(variable, [])))
    return _simplified(nodes)


def _unique(nodes):
    """The nodes without repetitions, in order."""
    return list({id(node): node for node in nodes}.values())


def _kernels(params):
    """The shapes of all kernels of a layer."""
    flat = flax.traverse_util.flatten_dict(params)
    return [leaf.shape for path, leaf in flat.items() if path[-1] == 'kernel']


def _layer(module, params, result, is_again):
    """The node of a layer, from its module and its parameters, as far as they say it."""
    name = type(module).__name__
    words = [_KINDS.get(name, name)]
    for kernel in _kernels(params):
        if len(kernel) == 4:
            words[0] = f'{kernel[0]}×{kernel[1]} {words[0]}'
        words.append(f'{kernel[-1]} {"filter" if len(kernel) == 4 else "unit"}' + 's' * (kernel[-1] > 1))
    strides = getattr(module, 'strides', None) or 1
    strides = max(strides) if isinstance(strides, (tuple, list)) else strides
    words += [f'stride {strides}'] if strides > 1 else []
    words += ['upsampled'] if getattr(module, 'upsampled', False) else []
    words += ['batch norm'] if 'norm' in params else []
    activation = getattr(module, 'activation', 'linear')
    activation = getattr(activation, '__name__', activation)
    words += [activation] if activation not in (None, 'linear') else []
    count = 0 if is_again else sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    path = module.path or (name,)
    group = path[0] if len(path) > 1 else path[0].split('_')[0]
    shape = jax.tree.leaves(result)[0].shape[1:]
    return Node('layer', '/'.join(path), shape, ', '.join(words), count, group)


def _name(equation):
    """What an equation computes, in a word."""
    inner = equation.params.get('call_jaxpr')  # of a function with a derivative of its own
    if inner is not None and len(inner.jaxpr.eqns) == 1:
        return _name(inner.jaxpr.eqns[0])
    name = str(equation.params.get('name', equation.primitive.name)).strip('_')
    is_flat = name == 'reshape' and len(equation.outvars[0].aval.shape) == 2
    return 'flatten' if is_flat else name.replace('_', ' ')


def _simplified(nodes):
    """Without what reaches no output, and with one operation in place of several in a row."""
    needed, waiting = set(), [node for node in nodes if node.kind == 'output']
    while waiting:
        node = waiting.pop()
        if id(node) not in needed:
            needed.add(id(node))
            waiting += node.sources
    nodes = [node for node in nodes if id(node) in needed or node.kind == 'input']
    users = consumers(nodes)
    kept = []
    for node in nodes:
        while node.kind == 'operation' and len(node.sources) == 1:
            (source,) = node.sources
            if source.kind != 'operation' or len(users[id(source)]) > 1:
                break
            names = [*source.title.split(', '), node.title]
            node.title = ', '.join(dict.fromkeys(names))
            node.sources = source.sources
            kept = [other for other in kept if other is not source]
        kept.append(node)
    return kept


def consumers(nodes: Sequence[Node]) -> Mapping[int, list[Node]]:
    """{id of a node: the nodes that take their inputs from it}."""
    users: dict[int, list[Node]] = {id(node): [] for node in nodes}
    for node in nodes:
        for source in node.sources:
            users.setdefault(id(source), []).append(node)
    return users

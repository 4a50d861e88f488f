"""Modules that can be called: `jaxcolor.train(config)` beside `import jaxcolor.train`.

A package and a function cannot share a name: importing the submodule `jaxcolor.train` sets that attribute of the package,
whatever was there. So the module itself is callable. Python allows the `__class__` of a module to be set for such purposes
(Language Reference, *Customizing module attribute access*); it stays the module that it was for all else.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Lets a module be called as a function. Call it in the module itself.

    Args:
        name: `__name__` of the module.
        function: what a call of it calls; `__doc__` begins with its docstring, and `inspect.signature` shows its arguments.
    """
    module = sys.modules[name]
    module.__class__ = type('CallableModule', (ModuleType,), {'__call__': staticmethod(function)})
    module.__doc__ = f'{inspect.getdoc(function)}\n\nThe module: {module.__doc__}'
    vars(module)['__signature__'] = inspect.signature(function)

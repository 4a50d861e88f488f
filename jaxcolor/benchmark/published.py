"""The published networks by name, as the benchmark takes them: inference with random weights."""

from ml_collections import ConfigDict

from jaxcolor import config as fields
from jaxcolor.models.eccv16 import TEMPERATURE
from jaxcolor.recipes import load_recipe
from jaxcolor.weights.published.library import SIDES
from jaxcolor.weights.published.table import PUBLISHED

_SECTIONS = {section.__name__: section for section in (fields.eccv16, fields.siggraph17, fields.iizuka)}


def find_config(name: str, mode: str) -> ConfigDict:
    """The config of a recipe or, for the mode 'infer', of a published network. Raises UserError if there is none."""
    return load_config(name) if mode == 'infer' and name in PUBLISHED else load_recipe(name)


def load_config(name: str) -> ConfigDict:
    """The config of a published network; `name` is a key of PUBLISHED."""
    network, _, kind = name.partition('-')
    config = fields.get_config()
    config.name, config.data.crop = name, SIDES[network]
    config.task.alpha = 0.0
    if network == 'ddcolor':
        config.model = fields.ddcolor()
        config.model.variant = 'tiny' if kind == 'paper-tiny' else 'large'
    elif network == 'deoldify':
        config.model = fields.deoldify()
        config.model.variant = 'artistic' if kind == 'artistic' else 'stable'
    else:
        config.model = _SECTIONS[network]()
    if network == 'eccv16':
        config.task = fields.color_classes()
        config.task.update({'temperature': TEMPERATURE, 'alpha': 0.0})
    return config

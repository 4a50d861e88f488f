"""configs/README.md against the recipes and the tests: what it says of the reports holds."""

import re

import pytest
from conftest import ROOT

from jaxcolor.recipes import load_recipe
from jaxcolor.sweep import read_sweep

PAGE = (ROOT / 'configs' / 'README.md').read_text(encoding='utf-8')
STATED = re.findall(r'`([a-z][\w:]*): (\w+\.\w+)=([^`]+)`', PAGE)


@pytest.mark.parametrize('recipe', sorted({recipe for recipe, _, _ in STATED}))
def test_fields_have_the_values_that_the_page_states(recipe):
    config = load_recipe(recipe)
    for section, value in [(field, value) for name, field, value in STATED if name == recipe]:
        name, field = section.split('.')
        assert str(config[name][field]) == value, section


def test_tests_and_files_of_the_page_exist():
    for path, name in re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?`', PAGE):
        text = (ROOT / path).read_text(encoding='utf-8')
        assert not name or f'def {name}(' in text, (path, name)
    for path in re.findall(r'`((?:jaxcolor|configs|launch)/[\w/.]*)`', PAGE):
        assert (ROOT / path).exists(), path


# Report 004, figures 12 to 20: what it says came out (validation, test), and architecture, learning rate, L2, batch size.
RESULTS = [
    '# 12: 0.567035, 0.5496931',
    '# 13: 0.5714356, 0.5394033',
    '# 14: "no learning happens"',
    '# 15: 0.5881328, 0.55679',
    '# 16: 0.52240014, 0.5577577',
    '# 17: loss NaN; 0.49233896, 0.47044206',
    '# 18: 0.57672495, 0.54632795',
    '# 19: 0.584938, 0.55964506',
    '# 20: 0.57347536, 0.568752',
]
# Figure 12's rate differs in caption and text.
FIGURES = [
    ('1', 0.01, 0.01, 5),
    ('1', 0.001, 0.01, 5),
    ('2', 0.01, 0.01, 5),
    ('base', 0.01, 0.01, 50),
    ('base', 0.001, 0.01, 5),
    ('base', 0.00001, 0.01, 5),
    ('base', 0.1, 0.01, 5),
    ('base', 0.001, 0.1, 5),
    ('base', 0.01, 0.01, 5),
    ('base', 0.0001, 0.01, 5),
]


def test_deepcolor_sweep_is_the_report_s_table():
    lines = (ROOT / 'configs' / 'sweeps' / 'deepcolor.txt').read_text(encoding='utf-8').splitlines()
    assert [line for line in lines if re.match(r'# \d\d:', line)] == RESULTS
    settings = []
    for recipe, *overrides in read_sweep('deepcolor'):
        config = load_recipe(recipe.removeprefix('--config='), overrides)
        settings.append(
            (config.model.variant, config.optimizer.learning_rate, config.task.kernel_l2, config.train.batch_size)
        )
    assert settings[: len(FIGURES)] == FIGURES
    assert settings[len(FIGURES) :] == [('base', 0.0001, 0.1, 5), ('base', 0.01, 0.1, 5), ('base', 0.0001, 0.001, 5)]

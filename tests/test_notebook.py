"""The notebook runs from its first cell to its last, and what it shows is kept with it."""

import json
import os

import pytest
from conftest import ROOT

FOLDER = ROOT / 'jaxcolor' / 'examples'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))


def cells(path):
    return [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_kept_and_small(path):
    assert path.stat().st_size < 600_000
    text = path.read_text(encoding='utf-8')
    assert str(ROOT) not in text and '/home/' not in text and '/tmp/' not in text
    for number, cell in enumerate(cells(path), 1):
        assert cell['execution_count'] == number
        assert not [each for each in cell['outputs'] if each['output_type'] == 'error']
    kinds = {kind for cell in cells(path) for each in cell['outputs'] for kind in each.get('data', ())}
    assert 'image/jpeg' in kinds


@pytest.mark.web
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(path, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('XLA_FLAGS', '')
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={'metadata': {'path': os.fspath(tmp_path)}}).execute()
    shown = [cell.get('outputs') for cell in notebook.cells if cell.cell_type == 'code']
    kept = [cell['outputs'] for cell in cells(path)]
    assert [len(each) for each in shown] == [len(each) for each in kept]
    assert (tmp_path / 'runs' / 'notebook' / 'curves.png').exists()

"""The comparison page: complete, self-contained, and with the metrics of the evaluation."""

import base64
import html
import io
import json
import re
import shutil

import numpy as np
import pytest
from conftest import PHOTOS
from PIL import Image

from jaxcolor.data import pipeline
from jaxcolor.data.shards import open_shards
from jaxcolor.errors import UserError
from jaxcolor.evaluation.command import evaluate
from jaxcolor.evaluation.compare import compare_runs


def test_page_shows_all_runs_and_photos(trained, shards, tmp_path):
    runs = [shutil.copytree(trained, tmp_path / name) for name in ('one', 'two <b>')]
    page = compare_runs(runs, '', 'validation')
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text) and 'http' not in text
    assert '<html lang="en">' in text and '{{' not in text and '{%' not in text
    assert len(re.findall('<img alt="[^"]{4}', text)) == text.count('<img') == 1 + 4 * 6
    assert re.search('<form id="order"[^>]* hidden>', text)  # without JavaScript there is nothing to sort with
    sections = re.findall(r'<section data-metrics="(.*?)">(.*?)</section>', text, re.DOTALL)
    assert len(sections) == 4
    batch = next(pipeline.eval_batches(open_shards(shards), 'validation', batch_size=4, crop=64))
    for i, (values, body) in enumerate(sections):
        assert html.escape(batch['name'][i]) in body
        values = json.loads(html.unescape(values))
        assert values['one'] == values['two <b>'] and 5 < values['one']['psnr'] < 50
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,(.*?)"', body)]
        assert [picture.size for picture in pictures] == [(64, 64)] * 6  # gray, 2 x (output, error), truth
        gray = np.asarray(pictures[0], np.int32)
        assert np.abs(gray - gray[..., :1]).max() < 8
    assert (
        'Mean gain of two &lt;b&gt; over one in PSNR (dB): 0 (95 % interval 0 to 0, not significant).' in text
        and '<b>' not in text
    )
    markdown = page.with_suffix('.md').read_text()
    rows = [re.findall('<t[hd][^>]*>(.*?)</t[hd]>', row) for row in re.findall('<tr>(.*?)</tr>', text)]
    in_markdown = [line.strip('|').split('|') for line in markdown.splitlines() if line.startswith('| ')]
    assert [[html.unescape(cell) for cell in row] for row in rows] == [[cell.strip() for cell in row] for row in in_markdown]
    assert '| PSNR (dB)' in markdown and 'nearest photo' in markdown.splitlines()[2]
    assert Image.open(page.with_suffix('.png')).size[1] == 4 * 64
    assert Image.open(page.parent / 'compare_validation_curves.png').width > 500


def test_a_folder_of_photos_by_a_protocol(trained, tmp_path):
    runs = [shutil.copytree(trained, tmp_path / name) for name in ('one', 'two')]
    folder = tmp_path / 'photos'
    folder.mkdir()
    for name in ('farm_animals-owl.jpg', 'fish1.jpg'):
        shutil.copy(PHOTOS / 'train' / name, folder)
    page = evaluate(runs[0], folder, protocol='val50k', compare=runs[1:])
    assert page.name == 'compare_val50k.html' and page.parent == runs[0] / 'evaluation'
    sections = re.findall(r'<section data-metrics="(.*?)">(.*?)</section>', page.read_text(), re.DOTALL)
    assert len(sections) == 2 and all(name in body for name, (_, body) in zip(('owl', 'fish1'), sections, strict=True))
    # The network sees 64 pixels here, and the protocol's 256 alone; the photos are the same.
    gray = evaluate(runs[0], folder, protocol='val50k')['gray']['psnr']
    assert f'{gray:.5g}' in page.with_suffix('.md').read_text()
    with pytest.raises(UserError, match='photos of one size'):
        evaluate(runs[0], folder, protocol='native', compare=runs[1:])

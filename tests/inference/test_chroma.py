"""`--chroma`: more or less color than the network predicts."""

import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from PIL import Image

from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.plan import plan_outputs

FISH = PHOTOS / 'train' / 'fish1.jpg'


def test_the_gain_multiplies_the_predicted_colors(colorizer, trained):
    lightness = colorizer.preprocess(Image.open(FISH))
    stronger = Colorizer(trained, chroma=1.5).predict_ab(lightness)
    np.testing.assert_allclose(stronger, 1.5 * colorizer.predict_ab(lightness), rtol=1e-6)
    gray = np.asarray(Colorizer(trained, chroma=0)(Image.open(FISH)), np.int32)
    assert np.abs(gray - gray[..., :1]).max() <= 1


def test_photos_of_another_gain_are_not_finished(colorizer, trained, tmp_path):
    def run(colorizer):
        summary = colorize(colorizer, plan_outputs([FISH], tmp_path / 'out'), quiet=True)
        return summary.colored, summary.finished

    stronger = Colorizer(trained, chroma=1.2)
    assert [run(each) for each in (colorizer, colorizer, stronger, stronger)] == [(1, 0), (0, 1), (1, 0), (0, 1)]


@pytest.mark.parametrize('gain', ['-1', 'nan', '11'])
def test_gains_that_cannot_be_are_refused(trained, tmp_path, cli, gain):
    code, _, err = cli('colorize', FISH, f'--model={trained}', f'--chroma={gain}', f'--out={tmp_path / "out"}')
    assert_one_sentence(code, err, 'chroma', gain)

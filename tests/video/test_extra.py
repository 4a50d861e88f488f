"""`jaxcolor video` where its extra is not installed."""

import sys

import pytest
from conftest import assert_one_sentence


@pytest.mark.parametrize('library', ['av', 'cv2'])
def test_what_lacks_is_said(library, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = cli('video', 'film.mkv', 'colored.mkv')
    assert_one_sentence(code, err, "pip install 'jaxcolor[video]'")

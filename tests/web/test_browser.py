"""The page in Chromium, used as people do (marker `browser`)."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import PHOTOS, ROOT
from PIL import Image
from web_serving import ENVIRONMENT, served

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FISH = PHOTOS / 'train' / 'fish1.jpg'
MINUTE = 60_000


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    with served('--max-megapixels=90', '--color-seconds=300', folder=tmp_path_factory.mktemp('server')) as server:
        yield server.address


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "needs Debian's package chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(chromium, address, **options):
    """The page, in a context of its own; at the end all that it asked for was this server's."""
    context = chromium.new_context(**options)
    page, asked, faults = context.new_page(), [], []
    page.on('request', lambda request: asked.append(request.url))
    page.on('pageerror', lambda error: faults.append(str(error)))
    page.goto(address)
    page.locator('#model option').first.wait_for(state='attached')
    yield page
    context.close()
    assert not faults
    assert all(url.startswith((address, 'blob:', 'data:')) for url in asked), asked


def finish(page):
    page.locator('#zip:enabled').wait_for(timeout=5 * MINUTE)


def saved(page, selector):
    with page.expect_download() as download:
        page.locator(selector).first.click()
    return download.value.path().read_bytes()


def command(photo, out, *options):
    words = [sys.executable, '-m', 'jaxcolor', 'colorize', photo, f'--out={out}', *options]
    subprocess.run([str(word) for word in words], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    return out.read_bytes()


def test_drop_slide_hint_download(chromium, address, tmp_path):
    with opened(chromium, address) as page:
        # A real drop: a DataTransfer with the file's bytes.
        transfer = page.evaluate_handle(
            'bytes => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(bytes)], "a.jpg")); return t }',
            list(FISH.read_bytes()),
        )
        page.dispatch_event('#drop', 'drop', {'dataTransfer': transfer})
        finish(page)
        assert saved(page, '.download') == command(FISH, tmp_path / 'plain.jpg')
        # The slider, by keyboard: all of it in color, then all of it gray.
        pictures = {}
        page.locator('.slide').focus()
        for key in ('Home', 'End'):
            page.keyboard.press(key)
            box = page.locator('.compare').screenshot()
            pictures[key] = np.asarray(Image.open(io.BytesIO(box)).convert('RGB'), int)[20:-20, 20:-20]
        color, gray = (np.ptp(picture, axis=2) for picture in (pictures['Home'], pictures['End']))
        assert np.percentile(color, 90) > 20 and np.percentile(gray, 90) <= 2
        # A hint where the photo is clicked, of the color that is picked.
        page.locator('.hint').click()
        width, height = (page.locator('.compare').bounding_box()[side] for side in ('width', 'height'))
        page.locator('.compare').click(position={'x': width / 2, 'y': height / 2})
        page.locator('.points .color').fill('#2040d0')
        page.locator('.card:not(:has(.veil:not([hidden]))) .points').wait_for()
        page.wait_for_timeout(800)
        finish(page)
        x, y = (page.locator(f'.points .{axis}').input_value() for axis in 'xy')
        size = Image.open(FISH).size
        assert abs(int(x) - size[0] / 2) <= 2 and abs(int(y) - size[1] / 2) <= 2
        assert saved(page, '.download') == command(FISH, tmp_path / 'hint.jpg', f'--hints={x},{y},#2040d0')


def test_settings_and_all_as_zip(chromium, address, tmp_path):
    mood = PHOTOS / 'train' / 'fish25.jpg'
    (tmp_path / 'other').mkdir()
    twin = shutil.copy(PHOTOS / 'train' / 'fish6.jpg', tmp_path / 'other' / 'fish1.jpg')
    scan = tmp_path / 'scan.tif'
    Image.open(FISH).convert('L').save(scan, dpi=(300, 300))
    with opened(chromium, address) as page:
        page.set_input_files('#style', mood)
        page.locator('#chroma').fill('1.3')
        page.set_input_files('#files', [FISH, scan])
        page.set_input_files('#files', twin)
        finish(page)
        archive = zipfile.ZipFile(io.BytesIO(saved(page, '#zip')))
        assert archive.testzip() is None
        assert archive.namelist() == ['fish1.jpg', 'scan.tif', 'fish1-2.jpg']
        for name, photo in zip(archive.namelist(), (FISH, scan, twin), strict=True):
            assert archive.read(name) == command(photo, tmp_path / 'out' / name, '--chroma=1.3', f'--style={mood}')
        assert 'pixels' in page.locator('.state').nth(1).inner_text()  # a TIFF is shown, too
        # Other settings for all of them.
        page.locator('#style-clear').click()
        page.locator('#chroma').fill('0')
        page.locator('#again').click()
        page.wait_for_timeout(100)
        finish(page)
        gray = np.asarray(Image.open(io.BytesIO(saved(page, '.download'))).convert('RGB'), int)
        assert np.percentile(np.ptp(gray, axis=2), 99) <= 3


def test_what_goes_wrong_is_told_and_the_others_are_colored(chromium, address, tmp_path):
    """A text file, 100 megapixels, HTML in a name, 20 photos at once, one that is removed, a tab that is closed."""
    (tmp_path / 'notes.txt').write_text('hello')
    Image.new('L', (10_000, 10_000), 99).save(tmp_path / 'huge.png')
    shutil.copy(FISH, tmp_path / '<img src=x onerror=alert(1)>.jpg')
    with opened(chromium, address) as page:
        page.set_input_files('#files', sorted(PHOTOS.rglob('*.jpg'))[:20])
        page.wait_for_timeout(100)
        page.close()
    with opened(chromium, address) as page:
        page.on('dialog', lambda dialog: pytest.fail('HTML was taken from a name'))
        page.set_input_files('#files', [tmp_path / 'notes.txt', tmp_path / 'huge.png', *tmp_path.glob('<*')])
        page.set_input_files('#files', sorted(PHOTOS.rglob('*.jpg'))[:20])
        assert page.locator('.card').count() == 23
        page.locator('.card').last.locator('.remove').click()
        finish(page)
        assert page.locator('#status').inner_text() == '20 of 22 colored, 2 could not be colored.'
        assert page.locator('.state').nth(0).inner_text() == 'notes.txt cannot be colored: not a photo.'
        assert re.search('10000x10000 is more than 90 megapixels', page.locator('.state').nth(1).inner_text())
        assert page.locator('.name').nth(2).inner_text() == '<img src=x onerror=alert(1)>.jpg'
        assert page.locator('.about img').count() == 0


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [320, 390, 1280])
def test_it_fits_every_width(chromium, address, width, scheme):
    """Nothing is cut off, and text stands out from what is behind it."""
    with opened(chromium, address, viewport={'width': width, 'height': 800}, color_scheme=scheme) as page:
        page.set_input_files('#files', FISH)
        finish(page)
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        colors = page.evaluate(
            "['.name', '.state', 'header p', '#status'].map(s => getComputedStyle(document.querySelector(s)).color)"
        )
        behind = page.evaluate('getComputedStyle(document.body).backgroundColor')
        for color in colors:
            assert contrast(color, behind) >= 4.5, (color, behind)  # WCAG 2.2, 1.4.3


def contrast(*colors):
    luminances = []
    for color in colors:
        levels = np.array([int(level) for level in re.findall(r'\d+', color)[:3]]) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        luminances.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def test_it_works_by_keyboard(chromium, address):
    with opened(chromium, address) as page:
        page.set_input_files('#files', FISH)
        finish(page)
        page.locator('.slide').focus()
        page.keyboard.press('ArrowRight')
        assert page.locator('.slide').get_attribute('aria-valuetext') == '51 % gray'
        page.keyboard.press('Tab')
        page.keyboard.press('Enter')  # a hint, in the middle
        assert page.evaluate('document.activeElement.className') == 'color'
        page.wait_for_timeout(800)
        finish(page)
        for _ in range(3):
            page.keyboard.press('Tab')
        page.keyboard.press('Enter')  # removes it
        assert page.locator('.points li').count() == 0
        page.wait_for_timeout(800)
        finish(page)

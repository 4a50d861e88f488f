"""The HTTP API: it colors as the command does, and outlasts what clients send."""

import asyncio
import concurrent.futures
import io
import itertools
import json
import struct
import threading
import zlib

import numpy as np
import pytest
from conftest import PHOTOS, assert_one_sentence
from PIL import Image

from jaxcolor.errors import UserError
from jaxcolor.inference.colorize import colorize
from jaxcolor.inference.colorizer import Colorizer
from jaxcolor.inference.plan import plan_outputs

pytest.importorskip('starlette')
from starlette.testclient import TestClient

from jaxcolor.web import app as web_app
from jaxcolor.web.app import Limits, make_app
from jaxcolor.web.service import Service
from jaxcolor.web.uploads import clean_name

FISH = PHOTOS / 'train' / 'fish1.jpg'
LIMITS = Limits(max_bytes=2_000_000, queue=32, upload_seconds=5, color_seconds=60)


@pytest.fixture(scope='module')
def service(trained):
    service = Service([str(trained)], max_megapixels=4)
    yield service
    service.close()


@pytest.fixture(scope='module')
def client(service):
    with TestClient(make_app(service, LIMITS, workers=4), raise_server_exceptions=False) as client:
        yield client


def small(name='photo.png', size=(64, 48), seed=0):
    """A file of noise, (name, bytes)."""
    levels = np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, {'png': 'PNG', 'jpg': 'JPEG', 'tif': 'TIFF'}[name.rpartition('.')[2]], dpi=(300, 300))
    return name, file.getvalue()


def color(client, photo, **fields):
    files = {name: value for name, value in fields.items() if isinstance(value, tuple)}
    texts = {name: value for name, value in fields.items() if name not in files}
    return client.post('/api/colorize', files={'photo': photo, **files}, data=texts)


def refused(answer, code, *parts):
    assert answer.status_code == code, answer.text
    sentence = answer.json()['error']
    assert '\n' not in sentence and 'Traceback' not in sentence
    for part in parts:
        assert part in sentence, sentence


@pytest.mark.parametrize('name', ['photo.png', 'photo.jpg', 'scan.tif'])
def test_results_are_the_commands_to_the_byte(client, colorizer, tmp_path, name):
    _, data = small(name)
    (tmp_path / name).write_bytes(data)
    assert not colorize(colorizer, plan_outputs([tmp_path / name], tmp_path / 'out'), quiet=True).failures
    answer = color(client, (name, data))
    assert answer.status_code == 200, answer.text
    assert answer.content == (tmp_path / 'out' / name).read_bytes()
    assert answer.headers['content-disposition'].endswith(f"UTF-8''{name}")
    assert Image.open(io.BytesIO(answer.content)).info['dpi'] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.slow
def test_options_are_the_commands_to_the_byte(client, trained, tmp_path, cli):
    style = PHOTOS / 'train' / 'fish25.jpg'
    options = {'chroma': '1.5', 'hints': '20,30,#a03030;5,5,#3030a0'}
    flags = [f'--{name}={value}' for name, value in options.items()]
    code, _, err = cli('colorize', FISH, f'--out={tmp_path / "a.jpg"}', f'--model={trained}', f'--style={style}', *flags)
    assert code == 0, err
    answer = color(client, ('a.jpg', FISH.read_bytes()), style=('s.jpg', style.read_bytes()), **options)
    assert answer.content == (tmp_path / 'a.jpg').read_bytes()


def test_what_a_result_does_not_keep_is_said(client):
    clear = io.BytesIO()
    Image.new('RGBA', (40, 40), (99, 99, 99, 0)).save(clear, 'GIF', save_all=True, append_images=[Image.new('L', (40, 40))])
    answer = color(client, ('ä 1.gif', clear.getvalue()))
    assert answer.headers['content-disposition'].endswith("UTF-8''%C3%A4%201.gif.png")
    assert answer.headers['content-type'] == 'image/png' and json.loads(answer.headers['x-jaxcolor-notes']) == []


def test_twenty_at_once_are_all_colored_each_as_alone(client, service):
    photos = [small(f'{i}.png', seed=i) for i in range(20)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda photo: color(client, photo), photos))
    assert [answer.status_code for answer in answers] == [200] * 20
    for photo, answer in list(zip(photos, answers, strict=True))[::5]:
        assert answer.content == color(client, photo).content
    health = client.get('/api/health').json()
    assert health['requests'] == 0 and health['photos'] >= 24 and health['mean_batch'] >= 1


@pytest.mark.slow
def test_batches_of_gpus_are_padded(service, monkeypatch):
    """The way that a GPU takes, on a CPU: three photos in one call, beside a zero."""
    network = service.colorizer('').network
    photos = list(np.random.default_rng(0).uniform(0, 100, (3, 1, 64, 64, 1)).astype(np.float32))
    one_by_one = network._predict_batch(photos)
    for photo, ab in zip(photos, one_by_one, strict=True):
        np.testing.assert_array_equal(ab, Colorizer.predict_ab(network, photo))
    seen, run = [], network._run
    monkeypatch.setattr(network, '_run', lambda lightness, *rest: (seen.append(lightness.shape), run(lightness, *rest))[1])
    monkeypatch.setattr(Colorizer, 'batch_size', 8)
    for ab, alone in zip(network._predict_batch(photos), one_by_one, strict=True):
        np.testing.assert_allclose(ab, alone, atol=0.01)  # units of a*b*; float32, summed in another order
    assert seen == [(4, 64, 64, 1)]


def test_previews(client):
    answer = client.post('/api/preview', files={'photo': small('scan.tif', (1800, 90))})
    assert answer.headers['content-type'] == 'image/jpeg'
    assert (answer.headers['x-photo-width'], answer.headers['x-photo-height']) == ('1800', '90')
    assert Image.open(io.BytesIO(answer.content)).size == (1600, 80)


BAD = {
    'text': (('notes.txt', b'hello'), {}, 422, ['notes.txt cannot be colored: not a photo']),
    'empty': (('a.png', b''), {}, 422, ['not a photo']),
    'truncated': (('a.jpg', FISH.read_bytes()[:3000]), {}, 422, ['a.jpg cannot be colored']),
    'too small': (small(size=(9, 1)), {}, 422, ['too small']),
    'model': (small(), {'model': '../../etc'}, 422, ["no model '../../etc'"]),
    'chroma': (small(), {'chroma': 'much'}, 422, ['chroma=much is not a number']),
    'chroma nan': (small(), {'chroma': 'nan'}, 422, ['between 0 and 10']),
    'chroma 11': (small(), {'chroma': '11'}, 422, ['between 0 and 10']),
    'a path as hints': (small(), {'hints': str(FISH)}, 422, ['not points']),
    'hints outside': (small(), {'hints': '999,1,#ff0000'}, 422, ['outside the photo']),
    'hints as a file': (small(), {'hints': small()}, 422, ['`hints` is text']),
    'style as text': (small(), {'style': 'blue'}, 422, ['`style` is the file']),
    'style': (small(), {'style': ('s.jpg', b'no')}, 422, ['the style photo cannot be colored: not a photo']),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_sentence(client, name):
    photo, fields, code, parts = BAD[name]
    refused(color(client, photo, **fields), code, *parts)


def test_bad_forms_are_one_sentence(client):
    refused(client.post('/api/colorize', data={'chroma': '1'}, files={'other': small()}), 422, 'no file `photo`')
    refused(client.post('/api/colorize', content=b'x'), 415, 'multipart/form-data')
    refused(client.post('/api/colorize', content=b'x', headers={'Content-Type': 'multipart/form-data'}), 400, 'boundary')
    headers = {'Content-Type': 'multipart/form-data; boundary=b'}
    refused(client.post('/api/colorize', content=b'nonsense', headers=headers), 400, 'cannot be read')
    refused(client.post('/api/colorize', files=[('photo', small())] * 3), 400, 'Too many files')
    refused(client.post('/api/colorize', files=[('photo', small())] * 2), 400, '`photo` twice')
    refused(client.post('/api/colorize', data={str(i): '1' for i in range(20)}, files={'photo': small()}), 400, 'Too many')
    assert client.get('/api/colorize').status_code == 405 and client.get('/nowhere').status_code == 404


def test_oversized_and_endless_uploads_are_cut_off(client):
    refused(color(client, ('a.png', bytes(2_100_000))), 413, 'larger than 2 MB')
    head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n'
    sent = []

    def endless():  # without a length
        yield head
        while True:
            sent.append(100_000)
            yield bytes(100_000)
            assert sum(sent) < 50_000_000, 'the server reads on'

    headers = {'Content-Type': 'multipart/form-data; boundary=b'}
    messages = endless()
    answer = asyncio.run(
        answered(client.app, ({'type': 'http.request', 'body': x, 'more_body': True} for x in messages), headers)
    )
    assert answer[0]['status'] == 413 and sum(sent) <= 2_200_000


async def answered(app, messages, headers, pause=0.0):
    """What an application sends for a POST of these messages; the last may be a disconnect."""
    sent = []
    scope = {
        'type': 'http',
        'method': 'POST',
        'path': '/api/colorize',
        'raw_path': b'/api/colorize',
        'query_string': b'',
        'headers': [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        'http_version': '1.1',
        'scheme': 'http',
    }

    async def receive():
        await asyncio.sleep(pause)
        message = next(messages, None)
        if message is None:
            await asyncio.Event().wait()
        return message

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


HEADERS = {'Content-Type': 'multipart/form-data; boundary=b'}


def whole(body):
    """The message of a body that comes at once."""
    return {'type': 'http.request', 'body': body}


def form(data, name='a.png', field='photo'):
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return head + data + b'\r\n--b--\r\n'


def test_slow_uploads_are_cut_off(service):
    app = make_app(service, LIMITS._replace(upload_seconds=0.05), workers=1)
    pieces = itertools.chain([form(b'')[:-9]], itertools.repeat(b'-', 10_000))
    drops = ({'type': 'http.request', 'body': each, 'more_body': True} for each in pieces)
    assert asyncio.run(answered(app, drops, HEADERS, pause=0.01))[0]['status'] == 408


def test_a_client_that_is_gone_costs_nothing(service, monkeypatch):
    """Its photo is not colored if it waits still, and those after it are."""
    colored, free = [], threading.Event()

    def slow(request):
        colored.append(request.name)
        free.wait(10)
        return original(request)

    original = service.color
    monkeypatch.setattr(service, 'color', slow)
    app = make_app(service, LIMITS, workers=1)
    _, data = small()
    gone = [whole(form(data, 'gone.png')), {'type': 'http.disconnect'}]
    half = [{'type': 'http.request', 'body': form(data)[:99], 'more_body': True}, {'type': 'http.disconnect'}]

    async def run():
        first = asyncio.ensure_future(answered(app, iter([whole(form(data, 'first.png'))]), HEADERS))
        while not colored:
            await asyncio.sleep(0.001)
        statuses = [(await answered(app, iter(messages), HEADERS))[0]['status'] for messages in (gone, half)]
        free.set()
        last = await answered(app, iter([whole(form(data, 'last.png'))]), HEADERS)
        return statuses, (await first)[0]['status'], last[0]['status']

    assert asyncio.run(run()) == ([499, 499], 200, 200)
    assert colored == ['first.png', 'last.png']


def test_a_full_queue_refuses_and_empties_again(service, monkeypatch):
    free, original = threading.Event(), service.color
    monkeypatch.setattr(service, 'color', lambda request: (free.wait(10), original(request))[1])
    app = make_app(service, LIMITS._replace(queue=2), workers=1)

    async def run():
        request = lambda: answered(app, iter([whole(form(small()[1]))]), HEADERS)  # noqa: E731
        waiting = [asyncio.ensure_future(request()) for _ in range(2)]
        await asyncio.sleep(0.05)
        full = await request()
        free.set()
        return full[0], [(await each)[0]['status'] for each in waiting], (await request())[0]['status']

    full, others, after = asyncio.run(run())
    assert full['status'] == 503 and (b'retry-after', b'2') in full['headers']
    assert others == [200, 200] and after == 200


def test_coloring_that_takes_too_long_is_given_up(service, monkeypatch):
    free, original, requests = threading.Event(), service.color, []
    monkeypatch.setattr(service, 'color', lambda request: (requests.append(request), free.wait(10), original(request))[2])
    app = make_app(service, LIMITS._replace(color_seconds=0.05), workers=1)
    sent = asyncio.run(answered(app, iter([whole(form(small()[1]))]), HEADERS))
    free.set()
    assert sent[0]['status'] == 504
    with pytest.raises(UserError, match='nobody waits'):  # the thread leaves the photo at its next frame
        original(requests[0])


def bomb(width, height):
    """A PNG of a few kB, whose pixels are gigabytes."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    row = zlib.compress(bytes(1_000_000), 9) * 10
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT', row)


def test_decompression_bombs_are_refused_unopened(client):
    refused(color(client, ('bomb.png', bomb(60_000, 60_000))), 422, '60000x60000 is more than 4 megapixels')
    refused(color(client, ('bomb.png', bomb(1500, 1500))), 422, 'bomb.png cannot be colored')  # it lacks most rows
    refused(color(client, small(), style=('bomb.png', bomb(60_000, 60_000))), 422, 'megapixels')


def test_very_many_small_frames_are_refused_unopened(client):
    """Each of them would take memory and a run of the network."""
    file = io.BytesIO()
    Image.new('L', (2, 2)).save(file, 'GIF')
    head, comma, frame = file.getvalue()[:-1].partition(b',')
    answer = color(client, ('many.gif', head + (comma + frame) * 300 + b';'))
    refused(answer, 422, '300 frames of 2x2, which count as 16384 pixels each, are more than 4 megapixels')


@pytest.mark.parametrize(
    ('name', 'clean'),
    [
        ('../../etc/passwd.png', 'passwd.png'),
        ('..\\..\\win.ini.png', 'win.ini.png'),
        ('/abs/olute.png', 'olute.png'),
        ('..', 'photo'),
        ('', 'photo'),
        ('a\r\nSet-Cookie: x.png', 'a  Set-Cookie: x.png'),
        ('<img src=x onerror=alert(1)>.png', '<img src=x onerror=alert(1)>.png'),
        ('n' * 400 + '.png', 'n' * 147 + '.png'),
    ],
)
def test_names_of_files_are_only_names(client, name, clean):
    assert clean_name(name) == clean
    answer = color(client, (name or ' ', small()[1]))
    assert answer.status_code == 200, answer.text
    disposition = answer.headers['content-disposition']
    assert '/' not in disposition and '<' not in disposition and 'set-cookie' not in answer.headers


def test_html_in_names_stays_text(client):
    """The API's sentences are JSON, and the page sets no HTML from text."""
    answer = color(client, ('<b>x</b>.png', b'no'))
    assert answer.headers['content-type'] == 'application/json' and answer.headers['x-content-type-options'] == 'nosniff'
    script = client.get('/static/page.js').text
    assert not any(word in script for word in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval('))


def test_nothing_comes_to_the_disk(client, tmp_path, monkeypatch):
    """Also of uploads that Starlette would keep in a file of its own."""
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'nowhere'))
    name, data = small(size=(1500, 1000))
    assert len(data) > 2**20
    assert color(client, (name, data)).status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get('/')
    assert "default-src 'none'" in page.headers['content-security-policy']
    for name in ('', *(f'static/{name}' for name in web_app._STATIC)):
        answer = client.get(f'/{name}')
        assert answer.status_code == 200, name
        assert 'http' not in answer.text.replace('http://www.w3.org/2000/svg', '').replace('HTTP API', ''), name
    assert client.get('/static/..%2Fapp.py').status_code == 404 and client.get('/static/page.html').status_code == 404


def test_pages_of_others_are_not_answered(service):
    client = TestClient(make_app(service, LIMITS, 1, ('localhost',)), base_url='http://localhost')
    foreign = {'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Mode': 'cors'}
    for headers in (foreign, {'Origin': 'http://evil.example'}, {'Origin': 'null'}):
        refused(client.post('/api/colorize', files={'photo': small()}, headers=headers), 403, 'its own page')
    assert client.post('/api/colorize', files={'photo': small()}, headers={'Origin': 'http://localhost'}).status_code == 200
    assert client.get('/', headers={**foreign, 'Sec-Fetch-Mode': 'navigate'}).status_code == 200
    assert client.get('/', headers={'Host': 'evil.example'}).status_code == 400


def test_the_document_tells_of_all_routes(client, service):
    document = client.get('/openapi.json').json()
    paths = {route.path for route in client.app.routes} - {'/', '/static/{name}', '/openapi.json'}
    assert set(document['paths']) == paths
    properties = document['paths']['/api/colorize']['post']['requestBody']['content']['multipart/form-data']['schema']
    assert properties['properties']['model']['enum'] == service.names
    assert client.get('/api/models').json() == [{'name': service.names[0], 'style': True}]


def test_bad_commands_give_one_sentence(trained, cli):
    for flags, parts in [
        (['--queue=0'], ['--queue must be above 0']),
        (['--model=nowhere'], ['nowhere']),
        ([f'--model={trained}', f'--model={trained}'], ['same name']),
        (['--host=256.0.0.1'], ['256.0.0.1:8000 cannot be listened on']),
        (['--port=99999'], ['--port must lie between 0 and 65535']),
    ]:
        code, _, err = cli('serve', *flags)
        assert_one_sentence(code, err, *parts)

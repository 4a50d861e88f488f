"""Minutes of requests to a running server (marker `web`): made up from its document, and of several clients at a time."""

import concurrent.futures
import itertools
import json
import time
import urllib.request
from pathlib import Path

import httpx2
import pytest
from conftest import PHOTOS
from web_serving import served

pytestmark = pytest.mark.web
CLIENTS, SECONDS = 4, 60


def test_no_request_of_the_document_is_a_fault(tmp_path):
    schemathesis = pytest.importorskip('schemathesis')
    import hypothesis

    with served('--queue=8', folder=tmp_path) as (address, _):
        document = schemathesis.openapi.from_url(f'{address}openapi.json')
        seen, checks = [], list(hypothesis.HealthCheck)
        for operation in (each.ok() for each in document.get_all_operations()):
            # Of a GET nothing can be wrong: it takes no arguments.
            for mode in (
                schemathesis.GenerationMode if operation.method == 'post' else [schemathesis.GenerationMode.POSITIVE]
            ):

                @hypothesis.settings(max_examples=60, deadline=None, database=None, suppress_health_check=checks)
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def send(case):
                    answer = case.call(base_url=address)
                    seen.append((case.path, answer.status_code))
                    assert answer.status_code < 500 or answer.status_code == 503, answer.text
                    if answer.status_code >= 400 and 'json' in answer.headers.get('content-type', ''):
                        assert set(answer.json()) == {'error'}

                send()
        paths = {path for path, _ in seen}
        assert paths == {'/api/colorize', '/api/preview', '/api/models', '/api/health'}
        print(f'{len(seen)} requests, codes {sorted({code for _, code in seen})}')


def test_several_clients_for_a_minute(tmp_path):
    """Batches form, no photo is lost, and memory does not grow."""
    photos = [path.read_bytes() for path in sorted(PHOTOS.rglob('*.jpg'))]
    with served(folder=tmp_path) as (address, server):
        expected = [colored(httpx2.Client(), address, photo) for photo in photos]  # compiles all shapes
        before, sizes = health(address), []
        end = time.monotonic() + SECONDS

        def work(client):
            session = httpx2.Client()
            for done in itertools.count():
                if time.monotonic() > end:
                    return done
                index = (client + done) % len(photos)
                assert colored(session, address, photos[index]) == expected[index]

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(work, client) for client in range(CLIENTS)]
            while time.monotonic() < end:
                sizes.append(memory(server))
                time.sleep(0.5)
            done = sum(client.result() for client in clients)
        after = health(address)
    seen, batches = after['photos'] - before['photos'], after['batches'] - before['batches']
    half, quarter = len(sizes) // 2, len(sizes) // 4
    early, late = max(sizes[quarter:half]), max(sizes[half + quarter :])
    print(f'{done} photos, {done / SECONDS:.1f}/s, mean batch {seen / batches:.2f}, {early:.0f} -> {late:.0f} MB')
    assert seen == done and after['requests'] == 0
    assert seen / batches > 1
    assert late < 1.1 * early + 20


def memory(pid):
    """What a process holds, in MB."""
    text = Path(f'/proc/{pid}/status').read_text()
    return int(text.partition('VmRSS:')[2].split()[0]) / 1000


def health(address):
    with urllib.request.urlopen(f'{address}api/health') as answer:
        return json.load(answer)


def colored(session, address, photo):
    answer = session.post(f'{address}api/colorize', files={'photo': ('a.jpg', photo)}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.content

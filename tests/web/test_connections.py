"""Requests whose head does not come to an end."""

import asyncio
import socket

import pytest

pytest.importorskip('starlette')
import uvicorn

from jaxcolor.web import connections

HEAD = b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'


async def app(scope, receive, send):
    await asyncio.sleep(0.4)  # longer than the head may take
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'2')]})
    await send({'type': 'http.response.body', 'body': b'ok'})


def talk(*clients):
    """Serves clients, which are given (reader, writer), at the same time -> what they return."""

    async def run():
        listening = socket.create_server(('127.0.0.1', 0))
        config = uvicorn.Config(app, http=connections.ImpatientProtocol, lifespan='off', log_level='warning')
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        try:
            streams = [await asyncio.open_connection(*listening.getsockname()) for _ in clients]
            return await asyncio.gather(*(client(*each) for client, each in zip(clients, streams, strict=True)))
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(asyncio.wait_for(run(), 60))


async def byte_by_byte(reader, writer):
    answer = asyncio.create_task(reader.read())
    for i in range(10_000):
        if answer.done():
            return answer.result()
        writer.write(HEAD[i : i + 1] if i < len(HEAD) - 4 else b'x')
        await asyncio.sleep(0.02)
    raise AssertionError('it was never cut off')


async def silent(reader, writer):
    return await reader.read()


async def twice(reader, writer):
    """Two requests on one connection, the second in two pieces."""
    answers = []
    for pieces in ([HEAD], [HEAD[:9], HEAD[9:]]):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        answers.append(await reader.readuntil(b'ok'))
    writer.close()
    return answers


async def slow_second(reader, writer):
    """A second request that does not end."""
    writer.write(HEAD)
    await reader.readuntil(b'ok')
    writer.write(HEAD[:9])
    return await reader.read()


def test_heads_that_do_not_end_are_cut_off_and_others_are_not(monkeypatch):
    monkeypatch.setattr(connections, 'HEAD_SECONDS', 0.2)
    slow, nothing, answers, second = talk(byte_by_byte, silent, twice, slow_second)
    for refused in (slow, nothing, second):
        assert refused.startswith(b'HTTP/1.1 408 ')
    assert [each.split(b' ')[1] for each in answers] == [b'200', b'200']

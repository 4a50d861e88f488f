"""Connections that take too long to say what they want are ended: uvicorn itself waits for a request's head forever."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# From the first byte of a request, or from when the connection was made, to the end of the request's head.
HEAD_SECONDS = 10.0
_ANSWER = b'HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n'


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, with a limit to the time of a request's head; bodies have one in `uploads`."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits on while the head is not whole; bytes that come one by one give no more time."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self):
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self):
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self):
        self.transport.write(_ANSWER)
        self.transport.close()

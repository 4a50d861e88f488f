"""A server on this machine, for downloads."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serve(folder):
    """Yields the address of a server that offers the files of a folder, and the list of the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{served.server_port}', asked
        served.shutdown()

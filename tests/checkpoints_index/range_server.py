"""A real HTTP server on loopback with byte ranges, which fails when it is told to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes
    ----------
    failures : deque of str
        What goes wrong with the next requests for bytes, one each: ``"drop"`` (the connection is
        closed without an answer), ``"short"`` (half of the bytes), ``"500"``, ``"403"``,
        ``"whole"`` (200 with the whole file); ``""`` for nothing.
    always : str
        What goes wrong with every request for bytes after those.
    everything : bool
        Whether sizes and listings fail like bytes do.
    sent : int
        Bytes of bodies sent.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.failures: deque[str] = deque()
        self.always = ""
        self.everything = False
        self.sent = 0
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients hang up in these tests."""


class _Handler(SimpleHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"
    # Answers go out at once: a delay of 40 ms for each would be most of the tests' time.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        if not self.server.everything or self._succeeds():
            super().do_HEAD()

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if requested is None or not path.is_file():
            if not self.server.everything or self._succeeds():
                super().do_GET()
            return
        if self._succeeds():
            self._send(path, requested)

    def _succeeds(self) -> bool:
        failures = self.server.failures
        self.failure = failures.popleft() if failures else self.server.always
        if self.failure == "drop":
            self.close_connection = True
            self.connection.close()
        elif self.failure.isdigit():
            self.send_error(int(self.failure))
        return self.failure in ("", "short", "whole")

    def _send(self, path: Path, requested: str) -> None:
        failure = self.failure
        content = path.read_bytes()
        first, last = (int(n) for n in requested.removeprefix("bytes=").split("-"))
        body = content if failure == "whole" else content[first : last + 1]
        self.send_response(200 if failure == "whole" else 206)
        self.send_header("Content-Length", str(len(body)))
        if failure != "whole":
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if failure == "short":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.server.sent += len(body)
        self.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder within a block."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

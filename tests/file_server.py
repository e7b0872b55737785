"""A server of files on this machine that answers as a test wants, well or badly."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers the next request with the next item of the server's list, the last one for ever."""

    server: "FileServer"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append((self.path, self.headers.get("Range")))
            self.server.authorizations.append(self.headers.get("Authorization"))
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def start(self) -> int:
        """The first byte that the request asks for."""
        wanted = self.headers.get("Range")
        return int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0

    def reply(self, status: int, body: bytes = b"", **headers: object) -> None:
        """A whole answer; underscores in names of headers stand for hyphens."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


class FileServer(ThreadingHTTPServer):
    """Serves in a thread of its own while the `with` block runs.

    Attributes:
        answers: what is done with the coming requests.
        requests: (path, Range header) of those that came.
        authorizations: of the same requests.
        released: set it to let go of answers that `stall`.
    """

    daemon_threads = True

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.requests: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "FileServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def url(self, name: str) -> str:
        """The address of a file."""
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


def whole(body: bytes, **headers: object) -> Answer:
    """The file, without regard to ranges."""
    return lambda request: request.reply(200, body, Content_Length=len(body), **headers)


def ranges(body: bytes, **headers: object) -> Answer:
    """The file, or the part of it that is asked for."""

    def answer(request: Handler) -> None:
        start = request.start()
        if not start:
            whole(body, **headers)(request)
            return
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        request.reply(
            206, body[start:], Content_Length=len(body) - start, Content_Range=span, **headers
        )

    return answer


def cut_off(body: bytes, after: int, **headers: object) -> Answer:
    """The first bytes of the file; then the connection ends."""
    return lambda request: request.reply(200, body[:after], Content_Length=len(body), **headers)


def stall(body: bytes, after: int, **headers: object) -> Answer:
    """The first bytes of the file, then silence."""

    def answer(request: Handler) -> None:
        cut_off(body, after, **headers)(request)
        request.wfile.flush()
        request.server.released.wait(30)

    return answer


def silence(request: Handler) -> None:
    """Not even headers."""
    request.server.released.wait(30)


def status(code: int, **headers: object) -> Answer:
    """An error."""
    return lambda request: request.reply(code, b"", Content_Length=0, **headers)

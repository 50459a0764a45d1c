"""A small server on loopback that speaks as much of the Hugging Face hub's API as its client needs to get files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files` are (kind, repository, revision, file) -> bytes, with the kinds of the API: "datasets" or "models"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str, str, str], bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """(method, path, headers with names in small letters) of everything that was asked."""
        self.break_after: int | None = None
        """Cut connections after so many bytes of a file."""
        self.gated: set[str] = set()
        """Repositories that want a token."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, method: str) -> int:
        return sum(m == method and "/resolve/" in path for m, path, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers))
        match = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)(\?.*)?", unquote(self.path))
        if not match:
            return self._error(404, "EntryNotFound")
        kind, repository, revision, file = (match[1] or "models/")[:-1], match[2], match[3], match[4]
        found = {key for key in self.server.files if key[:2] == (kind, repository)}
        if not found:
            return self._error(401, "RepoNotFound")
        if repository in self.server.gated and "authorization" not in headers:
            return self._error(403, "GatedRepo")
        if not any(key[2] == revision for key in found):
            return self._error(404, "RevisionNotFound")
        data = self.server.files.get((kind, repository, revision, file))
        if data is None:
            return self._error(404, "EntryNotFound")
        first = 0
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            first = int(asked[1])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            rest = data[first:]
            if self.server.break_after is not None and len(rest) > self.server.break_after:
                self.wfile.write(rest[: self.server.break_after])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return None
            self.wfile.write(rest)
        return None

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs while the context lasts."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()

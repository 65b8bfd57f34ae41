# SPDX-License-Identifier: AGPL-3.0-only
"""A small model hub on loopback: Hugging Face's list and files, RapidOCR's release, and the ways in which they fail."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self, cast

REVISION = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `repositories` (as Hugging Face does, large files by a redirect) and `release` (plain files).

    Faults, to be set before or during the test:
    `status` answers everything with this error; `silent` accepts and never answers; `drips` sends the answer's header
    a byte at a time; `cuts` closes that many transfers of a model file after `after` bytes; `stalls` pauses that many
    there for ever; `spoiled` changes the bytes of all files or of the one named; `ignores_ranges` always sends all;
    `shifts` sends another piece than was asked for; `no_range` answers 416 to any file; `pause` waits before a file;
    `sizes` off leaves sizes and checksums out of the list; `claimed` lists other sizes.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.release: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.status = self.cuts = self.stalls = self.after = 0
        self.silent = self.drips = self.ignores_ranges = self.shifts = self.no_range = False
        self.spoiled: bool | str = False
        self.sizes = True
        self.claimed: dict[str, int] = {}
        self.pause = 0.0
        self.left = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT would be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def release_address(self) -> str:
        """What catalog.OCR_RELEASE would be."""
        return f"{self.endpoint}/release"

    @property
    def sent(self) -> list[str]:
        """The files that were asked for, each once for every transfer, in order."""
        return [path.rsplit("@", 1)[-1] for path, _ in self.requests if "@" in path]

    @property
    def ranges(self) -> list[str]:
        """The Range headers that were seen, without the question for the first byte."""
        return [value for _, value in self.requests if value]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.left.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = cast(_Server, self.server).hub, self.path.split("?")[0]
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.silent:
            hub.left.wait()
            self.close_connection = True
        elif hub.drips:
            for byte in b"HTTP/1.1 200 OK\r\nServer: " + b"x" * 300:
                if not hub.left.wait(0.1):
                    self.wfile.write(bytes([byte]))
            self.close_connection = True
        elif hub.status:
            self._reply(hub.status, b"<html>out of order</html>")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            self._list(hub, found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(hub, found[1], found[2])
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._file(hub, found[2], hub.repositories[found[1]][found[2]])
        elif (name := path.removeprefix("/release/")) in hub.release:
            self._file(hub, name, hub.release[name])
        else:
            self._reply(404, b"{}")

    def _list(self, hub: HubServer, repository: str) -> None:
        hub.requests.append((f"list {repository}", ""))
        if repository not in hub.repositories:
            self._reply(404, b'{"error": "Repository not found"}')
            return
        siblings = []
        for name, content in hub.repositories[repository].items():
            sibling: dict[str, object] = {"rfilename": name}
            if hub.sizes and "blobs=" in self.path:
                sibling |= {"size": hub.claimed.get(name, len(content)), "blobId": git_sha1(content)}
                if name.endswith(".onnx"):
                    sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        answer = {"id": repository, "modelId": repository, "sha": REVISION, "siblings": siblings, "tags": []}
        self._reply(200, json.dumps(answer).encode())

    def _resolve(self, hub: HubServer, repository: str, name: str) -> None:
        content = hub.repositories.get(repository, {}).get(name)
        if content is None:
            self._reply(404, b"Entry not found")
        elif name.endswith(".onnx"):
            self._reply(302, b"", {"Location": f"{hub.endpoint}/cdn/{repository}/{name}"})
        else:
            self._file(hub, name, content)

    def _file(self, hub: HubServer, name: str, content: bytes) -> None:
        wanted = self.headers.get("Range", "")
        is_transfer = wanted != "bytes=0-0"
        if is_transfer:
            hub.requests.append((f"file@{name}", wanted))
        if hub.no_range:
            self._reply(416, b"")
            return
        if hub.spoiled in (True, name):
            content = bytes(byte ^ 1 for byte in content)
        status, headers = 200, {}
        if (found := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)) and not hub.ignores_ranges:
            size, first, last = len(content), int(found[1]), int(found[2] or len(content) - 1)
            if first >= size:
                self._reply(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first + hub.shifts}-{last}/{size}"
        if hub.pause:
            hub.left.wait(hub.pause)
        if not (is_transfer and name.endswith(".onnx") and hub.cuts + hub.stalls):
            self._reply(status, content, headers)
            return
        self._reply(status, content, headers, send=hub.after)
        self.close_connection = True
        if hub.cuts:
            hub.cuts -= 1
        else:
            hub.stalls -= 1
            hub.left.wait()

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, send: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:send])
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: pytest's output is for the tests."""


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

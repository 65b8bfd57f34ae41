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
    """Serves `repositories` (Hugging Face's way, large files by a redirect) and `release` (plain files).

    Faults, to be set before or during the test: `status` answers everything with this error, `silent` accepts and never
    answers, `cuts` breaks off that many transfers of a model file after `after` bytes, `stalls` lets that many go quiet
    there instead, `spoiled` changes the bytes but not their number, `ignores_ranges` sends all always, `shifts` sends
    another piece than was asked for, `no_range` answers 416 to whatever file, `pause` waits before a file, no `sizes`
    leaves sizes and checksums out of the list, `claimed` tells other sizes there. `said` is what clients told of
    themselves.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.release: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.said: set[tuple[str, str | None]] = set()
        self.status = 0
        self.silent = self.spoiled = self.ignores_ranges = self.shifts = self.no_range = False
        self.sizes = True
        self.claimed: dict[str, int] = {}
        self.cuts = self.stalls = 0
        self.after = 0
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
        """The Range headers that were seen, but for the question for the first byte."""
        return [value for _, value in self.requests if value and value != "bytes=0-0"]

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

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = cast(_Server, self.server).hub
        path = self.path.split("?")[0]
        hub.said |= {(name, self.headers.get(name)) for name in ("User-Agent", "Authorization")}
        if hub.silent:
            hub.left.wait()
            self.close_connection = True
            return
        if hub.status:
            self._reply(hub.status, b"<html>out of order</html>")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            self._list(hub, found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(hub, found[1], found[2])
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._file(hub, found[2], hub.repositories[found[1]][found[2]])
        elif path.removeprefix("/release/") in hub.release:
            self._file(hub, path.removeprefix("/release/"), hub.release[path.removeprefix("/release/")])
        else:
            self._reply(404, b"{}")

    def _list(self, hub: HubServer, repository: str) -> None:
        hub.requests.append((f"list {repository}", ""))
        if repository not in hub.repositories:
            self._reply(404, b'{"error": "Repository not found"}', [("X-Error-Code", "RepoNotFound")])
            return
        siblings = []
        for name, content in hub.repositories[repository].items():
            sibling: dict[str, object] = {"rfilename": name}
            if hub.sizes and "blobs=" in self.path:
                sibling |= {"size": hub.claimed.get(name, len(content)), "blobId": _git_sha1(content)}
                if name.endswith(".onnx"):
                    sibling["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        answer = {"id": repository, "modelId": repository, "sha": REVISION, "siblings": siblings, "tags": []}
        self._reply(200, json.dumps(answer).encode())

    def _resolve(self, hub: HubServer, repository: str, name: str) -> None:
        content = hub.repositories.get(repository, {}).get(name)
        if content is None:
            self._reply(404, b"Entry not found", [("X-Error-Code", "EntryNotFound")])
        elif name.endswith(".onnx"):
            headers = [("X-Linked-Size", str(len(content))), ("X-Linked-Etag", f'"{_sha256(content)}"')]
            headers += [("X-Repo-Commit", REVISION), ("Location", f"{hub.endpoint}/cdn/{repository}/{name}")]
            self._reply(302, b"", headers)
        else:
            self._file(hub, name, content)

    def _file(self, hub: HubServer, name: str, content: bytes) -> None:
        wanted = self.headers.get("Range", "")
        if self.command == "GET" and wanted != "bytes=0-0":
            hub.requests.append((f"file@{name}", wanted))
        if hub.no_range:
            self._reply(416, b"")
            return
        whole = content
        if hub.spoiled:
            content = bytes(byte ^ 1 for byte in content)
        status, headers = 200, [("X-Repo-Commit", REVISION), ("ETag", f'"{_sha256(whole)}"')]
        if (found := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)) and not hub.ignores_ranges:
            first, last = int(found[1]), int(found[2] or len(content) - 1)
            if first >= len(content):
                self._reply(416, b"", [("Content-Range", f"bytes */{len(content)}")])
                return
            status, content = 206, content[first : last + 1]
            headers.append(("Content-Range", f"bytes {first + hub.shifts}-{last}/{len(whole)}"))
        cut = name.endswith(".onnx") and hub.cuts + hub.stalls > 0 and wanted != "bytes=0-0" and self.command == "GET"
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.pause:
            hub.left.wait(hub.pause)
        if not cut:
            self.wfile.write(content)
            return
        self.wfile.write(content[: hub.after])
        self.wfile.flush()
        self.close_connection = True
        if hub.cuts:
            hub.cuts -= 1
        else:
            hub.stalls -= 1
            hub.left.wait()

    def _reply(self, status: int, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        self.send_response(status)
        for key, value in headers or []:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: pytest's output is for the tests."""


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

# SPDX-License-Identifier: AGPL-3.0-only
"""A small model hub on loopback. It serves Hugging Face's lists and files and RapidOCR's release, or fails."""

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

REVISION = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves `repositories` (as Hugging Face does, large files by a redirect) and `release` (plain files).

    Faults, which a test can set at any time:
    `status` answers every request with this error; `silent` accepts connections and never answers; `drips` sends the
    header a byte at a time; `cuts` closes that many transfers of a model file after `after` bytes; `stalls` stops that
    many there without closing them; `spoiled` changes the bytes of all files or of the one named; `ignores_ranges`
    always sends the whole file; `shifts` declares another range than was requested; `no_range` answers 416 to any file;
    `pause` waits so many seconds before a file; `sizes` set to False leaves sizes and checksums out of the list;
    `claimed` lists wrong sizes; `login_page` answers with a web page; `elsewhere` redirects every request there.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        """certificate: a file with a certificate for localhost and its key; the server then speaks TLS."""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.release: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.status = self.cuts = self.stalls = self.after = 0
        self.silent = self.drips = self.ignores_ranges = self.shifts = self.no_range = False
        self.spoiled: bool | str = False
        self.sizes, self.login_page, self.elsewhere = True, False, ""
        self.claimed: dict[str, int] = {}
        self.pause = 0.0
        self.left = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.name = "http://127.0.0.1"
        if certificate:
            self.name, context = "https://localhost", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"{self.name}:{self._server.server_address[1]}"

    @property
    def release_address(self) -> str:
        """The value for catalog.OCR_RELEASE."""
        return f"{self.endpoint}/release"

    @property
    def sent(self) -> list[str]:
        """The requested files in order, one entry for each transfer."""
        return [path.rsplit("@", 1)[-1] for path, _ in self.requests if "@" in path]

    @property
    def ranges(self) -> list[str]:
        """The Range headers, without those that ask for the first byte only."""
        return [value for _, value in self.requests if value]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.left.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Logs nothing if a client closes its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.silent:
            hub.left.wait()
            self.close_connection = True
        elif hub.drips:
            for byte in b"HTTP/1.1 200 OK\r\nServer: " + b"x" * 300:
                if not hub.left.wait(0.1):
                    self.wfile.write(bytes([byte]))
            self.close_connection = True
        elif hub.elsewhere:
            self._reply(302, b"", {"Location": hub.elsewhere})
        elif hub.login_page:
            self._reply(200, b"<!doctype html><title>Log in</title>", {"Content-Type": "text/html; charset=utf-8"})
        elif hub.status:
            self._reply(hub.status, b"<html>out of order</html>")
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+).*", path)) and found[1] in hub.repositories:
            self._list(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(found[1], found[2])
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._file(found[2], hub.repositories[found[1]][found[2]])
        elif (name := path.removeprefix("/release/")) in hub.release:
            self._file(name, hub.release[name])
        else:
            self._reply(404, b"{}")

    def _list(self, repository: str) -> None:
        hub = self.hub
        hub.requests.append((f"list {repository}", ""))
        siblings = []
        for name, content in hub.repositories[repository].items():
            sibling: dict[str, object] = {"rfilename": name}
            if hub.sizes and "blobs=" in self.path:
                sibling |= {"size": hub.claimed.get(name, len(content)), "blobId": git_sha1(content)}
                if name.endswith(".onnx"):
                    sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        self._reply(200, json.dumps({"id": repository, "sha": REVISION, "siblings": siblings}).encode())

    def _resolve(self, repository: str, name: str) -> None:
        content = self.hub.repositories.get(repository, {}).get(name)
        if content is None:
            self._reply(404, b"Entry not found")
        elif name.endswith(".onnx"):
            self._reply(302, b"", {"Location": f"{self.hub.endpoint}/cdn/{repository}/{name}"})
        else:
            self._file(name, content)

    def _file(self, name: str, content: bytes) -> None:
        hub, wanted = self.hub, self.headers.get("Range", "")
        is_transfer = wanted != "bytes=0-0"
        if is_transfer:
            hub.requests.append((f"file@{name}", wanted))
        if hub.spoiled in (True, name):
            content = bytes(byte ^ 1 for byte in content)
        status, headers = 200, dict[str, str]()
        if (found := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)) and not hub.ignores_ranges:
            size, first, last = len(content), int(found[1]), int(found[2] or len(content) - 1)
            status, content = (206, content[first : last + 1]) if first < size else (416, b"")
            headers["Content-Range"] = f"bytes {first + hub.shifts}-{last}/{size}" if content else f"bytes */{size}"
        if hub.no_range:
            status, content = 416, b""
        hub.left.wait(hub.pause)
        fails = is_transfer and name.endswith(".onnx") and status < 400 and hub.cuts + hub.stalls > 0
        self._reply(status, content, headers, hub.after if fails else None)
        if fails:
            self.close_connection = True
            if hub.cuts:
                hub.cuts -= 1
            else:
                hub.stalls -= 1
                hub.left.wait()

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str] = {}, send: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:send])
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing, to keep pytest's output short."""


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

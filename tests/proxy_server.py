# SPDX-License-Identifier: AGPL-3.0-only
"""An HTTP proxy on loopback, and certificates for a mirror behind it."""

import base64
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit


class ProxyServer:
    """Forwards every request to one server, whatever its host; `asked` lists the hosts.

    login: `user:password`; a request without it gets 407. status: if set, the error that any other request gets.
    """

    def __init__(self, target: str = "", login: str = "", status: int = 0) -> None:
        """target: the address of the server."""
        self.target, self.login, self.status = urlsplit(target), login, status
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: ProxyServer

    def do_CONNECT(self) -> None:
        self._pass_on(self.path, b"")

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        headers = {**self.headers, "Connection": "close"}
        lines = [f"GET {address.path}?{address.query} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        self._pass_on(address.netloc, "\r\n".join([*lines, "", ""]).encode())

    def _pass_on(self, host: str, request: bytes) -> None:
        proxy = self.proxy
        proxy.asked.append(host)
        login = "Basic " + base64.b64encode(proxy.login.encode()).decode()
        if proxy.login and self.headers.get("Proxy-Authorization") != login:
            self.send_error(407)
        elif proxy.status:
            self.send_error(proxy.status)
        else:
            with socket.create_connection((proxy.target.hostname or "", proxy.target.port or 0)) as target:
                if request:
                    target.sendall(request)
                else:
                    self.send_response_only(200)
                    self.end_headers()
                threading.Thread(target=_copy, args=(self.connection, target), daemon=True).start()
                _copy(target, self.connection)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing, to keep pytest's output short."""


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def make_certificate(folder: Path, start: str, end: str) -> Path:
    """A self-signed certificate for localhost and its key, in one file. start, end: such as 20200101000000Z."""
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\n"
        "policy = any\nx509_extensions = names\n[any]\ncommonName = supplied\n[names]\nsubjectAltName = DNS:localhost\n"
    )
    (folder / "index").touch()
    (folder / "serial").write_text("01")
    new = "req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out request.pem -config /dev/null"
    dates = f"-startdate {start} -enddate {end}"
    sign = f"ca -batch -selfsign -config ca.cnf -keyfile key.pem -in request.pem -out cert.pem -notext {dates}"
    openssl = shutil.which("openssl") or "openssl"
    for command in (new, sign):
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)
    (whole := folder / "whole.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return whole

# SPDX-License-Identifier: AGPL-3.0-only
"""All access to the network: uses the proxy of the environment, times out within seconds, explains errors."""

import errno
import http.client
import json
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from ..machine import background

ANSWER_SECONDS = 6.0  # from the DNS lookup to the first line of the answer
STALL_SECONDS = 20.0  # without a byte until a transfer is aborted

_LIST_BYTES = 16 << 20
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "its name can't be resolved (DNS)"),
    (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "the connection was lost"),
    (http.client.HTTPException, "the connection was lost"),
    (ssl.SSLError, "no secure connection (TLS)"),
    (TimeoutError, "no answer in time"),
)
_OUT_OF_DATE, _OTHER_NAME = (9, 10), (62, 64)  # X509_V_ERR_… of OpenSSL

T = TypeVar("T")


class SourceError(Exception):
    """An endpoint can't provide a file; the message says why."""

    status: int | None = None


class BrokenOffError(SourceError):
    """A connection failed or ended early; another attempt may succeed."""


class ProxyError(BrokenOffError):
    """The proxy failed, not the endpoint."""


@contextmanager
def translate_source_errors() -> Iterator[None]:
    """Turns a library's errors about a bad answer into SourceError; passes errors of the disk on."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        if _is_of_the_disk(error):
            raise
        is_cut = isinstance(error, (OSError, http.client.HTTPException)) and not isinstance(error, HTTPError)
        raise (BrokenOffError if is_cut else SourceError)(_reason(error)) from error


def open_url(address: str, byte_range: str | None = None) -> http.client.HTTPResponse:
    """Sends a GET and returns the answer with its body unread. Sends a login in the address only to its host. Raises
    SourceError, with the HTTP status if there is one; also for a web page, which no endpoint sends."""
    bare, login = _without_login(address)
    request = Request(bare, headers={"User-Agent": "mt-photos-ml"} | ({"Range": byte_range} if byte_range else {}))
    if login:
        request.add_unredirected_header("Authorization", login)
    route = _Route()
    try:
        answer: http.client.HTTPResponse = answer_soon(lambda: build_opener(route).open(request, timeout=STALL_SECONDS))
    except Exception as error:
        if isinstance(error, HTTPError):
            error.close()  # it keeps the connection open
        raise route.failure(error, urlsplit(bare).netloc) from error
    if answer.headers.get_content_type() == "text/html":
        answer.close()
        said = f"{route.host} sent a web page; does this network need a login in a browser first?"
        raise SourceError(said + route.through)
    return answer


def read_json(address: str) -> Any:
    """Fetches JSON. Raises SourceError, and ValueError if the answer is not JSON."""
    with translate_source_errors(), open_url(address) as answer:
        content = answer_soon(lambda: answer.read(_LIST_BYTES))
    return json.loads(content)


def answer_soon(call: Callable[[], T]) -> T:
    """Runs the call in a thread, and returns or raises what it does; raises TimeoutError after ANSWER_SECONDS. A
    socket's timeout covers neither the DNS lookup nor a second address."""
    return background.run(call).result(ANSWER_SECONDS)


def without_login(address: str) -> str:
    """The address without user and password, so that it may be shown."""
    return _without_login(address)[0]


def by_reason(failures: Iterable[tuple[str, object]]) -> list[str]:
    """One text for each reason: `address, address: reason`. failures: addresses and reasons."""
    addresses = dict[str, list[str]]()
    for address, reason in failures:
        addresses.setdefault(str(reason), []).append(without_login(address))
    return [f"{', '.join(same)}: {reason}" for reason, same in addresses.items()]


class _Route(ProxyHandler):
    """Chooses the proxy for a request, and again for each redirect. host: the last host. proxy: how messages name the
    last proxy; empty if none was used."""

    def __init__(self) -> None:
        super().__init__({})
        self.host, self.proxy = "", ""

    def http_open(self, request: Request) -> None:
        """Sends the request to the proxy that the environment names for its host, if any. Raises ProxyError."""
        self.host, self.proxy = request.host, ""
        names = (f"{request.type}_proxy", f"{request.type}_proxy".upper(), "all_proxy", "ALL_PROXY")
        name = next((name for name in names if os.environ.get(name)), None)
        if name is None or _is_direct(urlsplit(request.full_url).hostname or "", request.host):
            return
        value = os.environ[name]
        try:
            address, login = _without_login(value if "://" in value else f"http://{value}")
            parts = urlsplit(address)
            host = f"{parts.netloc}{'' if parts.port else ':80'}"
        except ValueError:
            parts = None
        if not parts or not parts.hostname:
            raise ProxyError(f"{name} is not an address such as http://192.168.1.2:7890")
        self.proxy, kind = f"the proxy {address} ({name})", parts.scheme.upper()
        if kind not in ("HTTP", "HTTPS"):
            raise ProxyError(f"{self.proxy}: {kind} is not supported, only HTTP; name the program's HTTP port")
        request.set_proxy(host, "http")
        if login:
            request.add_unredirected_header("Proxy-authorization", login)

    https_open = http_open

    @property
    def through(self) -> str:
        """The end of a message about an endpoint: the proxy that was used, if any."""
        return f", through {self.proxy}" if self.proxy else ""

    def failure(self, error: Exception, host: str) -> SourceError:
        """The error as a SourceError. host: the one that was asked first."""
        if isinstance(error, ProxyError):
            return error
        reason, status = _reason(error), error.code if isinstance(error, HTTPError) else None
        is_tls = isinstance(error.reason if isinstance(error, URLError) else error, ssl.SSLError)
        if self.proxy and not is_tls and status in (None, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):
            return ProxyError(f"{self.proxy}: {reason}")
        where = f" (at {self.host})" if self.host != host else ""
        failure = (SourceError if status else BrokenOffError)(f"{reason}{where}{self.through}")
        failure.status = status
        return failure


def _without_login(address: str) -> tuple[str, str | None]:
    """The address without user and password, and the value for the Authorization header; None if there are none."""
    login = urlsplit(address).netloc.rpartition("@")[0]
    value = f"Basic {b64encode(unquote(login).encode()).decode()}" if login else None
    return address.replace(f"{login}@", "", 1) if login else address, value


def _is_direct(host: str, host_and_port: str) -> bool:
    """Whether NO_PROXY lists the host: its name, a parent domain, its address, a network such as 192.168.0.0/16, *."""
    for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).replace(",", " ").split():
        try:
            if ip_address(host) in ip_network(entry, strict=False):
                return True
        except ValueError:  # the entry or the host is a name
            name = entry.lower().lstrip("*.")
            if any(f".{asked}".endswith(f".{name}") for asked in (host, host_and_port)) or entry == "*":
                return True
    return False


def _is_of_the_disk(error: BaseException) -> bool:
    if not isinstance(error, OSError) or isinstance(error, URLError):
        return False
    return error.filename is not None or error.errno in _DISK_ERRORS


def _reason(error: BaseException) -> str:
    """Why an endpoint failed, by the first error in the chain that says it."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, HTTPError):
            status = f"HTTP {link.code} {http.client.responses.get(link.code, '')}".strip()
            return status if link.code >= HTTPStatus.BAD_REQUEST else f"its redirect can't be followed ({status})"
        if isinstance(link, SourceError):
            return str(link)
        if isinstance(link, ssl.SSLCertVerificationError):
            return _certificate_reason(link.verify_code)
        if reason := next((reason for kind, reason in _REASONS if isinstance(link, kind)), None):
            return reason
        if isinstance(link, OSError) and not isinstance(link, URLError):
            return (link.strerror or str(link).replace("Tunnel connection failed:", "HTTP")).strip()
        link = link.__cause__ or link.__context__
    return f"no usable answer ({type(error).__name__})"


def _certificate_reason(code: int) -> str:
    if code in _OUT_OF_DATE:
        return f"its certificate is not valid on {date.today()}, the date of this machine"
    if code in _OTHER_NAME:
        return "its certificate is for another name"
    file, unknown = os.environ.get("SSL_CERT_FILE"), "the issuer of its certificate is not trusted"
    if file is None:
        return f"{unknown}; set SSL_CERT_FILE to a file with the issuer's certificate"
    return f"{unknown}; SSL_CERT_FILE={file} {'does not contain it' if Path(file).exists() else 'does not exist'}"

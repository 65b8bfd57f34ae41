# SPDX-License-Identifier: AGPL-3.0-only
"""The key: every request needs it, but for the page for people and the ping."""

import hmac
import math
import time
from collections.abc import Collection
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from ..replies import reply

WRONG_KEYS_A_MINUTE = 10
"""Different ones from one address; after that it is answered 429 until the minute is over. Who sends an old key over
and over guesses nothing, and does no harm to others at the same address."""

_OPEN = {("GET", "/"), ("HEAD", "/"), ("GET", "/ping"), ("HEAD", "/ping")}
_REMEMBERED = 10_000  # addresses

T = TypeVar("T")


class ApiKeyMiddleware:
    """Answers 401 to a request without the key before a byte of its body is read, 429 to an address that guesses."""

    def __init__(self, app: ASGIApp, key: str, also_open: Collection[tuple[str, str]] = ()) -> None:
        """also_open: methods and paths that need no key besides."""
        self._app, self._key, self._open = app, key.encode(), {*_OPEN, *also_open}
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope.get("method"), scope["path"]) in self._open:
            await self._app(scope, receive, send)
            return
        keys, client = [value for name, value in scope["headers"] if name == b"api-key"], _network(scope)
        is_right = len(keys) == 1 and hmac.compare_digest(keys[0], self._key)
        wait = self._guesses.seconds_to_wait(client, keys, is_right)
        if is_right and not wait:
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif wait:
            headers = {"retry-after": str(math.ceil(wait))}
            await reply({"detail": "Too many wrong API keys"}, 429, headers)(scope, receive, send)
        else:
            await reply({"detail": "Invalid API key"}, 401)(scope, receive, send)


class Guesses:
    """Counts wrong keys by address. One that has shown the right key goes on being served: behind a proxy that does not
    say for whom it asks, who guesses must not shut the others out."""

    def __init__(self) -> None:
        self._wrong: dict[str, tuple[float, set[int]]] = {}  # the end of the minute, the hashes of the keys in it
        self._trusted: dict[str, None] = {}

    def seconds_to_wait(self, client: str, keys: Collection[bytes], is_right: bool) -> float:
        """0 for who may go on. Counts this request."""
        now = time.monotonic()
        until, wrong = self._wrong.get(client, (0.0, set[int]()))
        if until <= now:
            until, wrong = now + 60, set()
        is_slowed = len(wrong) >= WRONG_KEYS_A_MINUTE
        if is_right and (not is_slowed or client in self._trusted):
            _remember(self._trusted, client, None)
            return 0
        if keys and not is_right and not is_slowed:
            wrong.update(map(hash, keys))
            _remember(self._wrong, client, (until, wrong))
        return until - now if is_slowed else 0


def _remember(table: dict[str, T], client: str, value: T) -> None:
    table.pop(client, None)
    table[client] = value  # at the end: what is forgotten first is what was not seen for the longest
    if len(table) > _REMEMBERED:
        del table[next(iter(table))]


def _network(scope: Scope) -> str:
    """The client's address; of IPv6 the network, in which one client has any number of addresses."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))

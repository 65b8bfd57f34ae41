# SPDX-License-Identifier: AGPL-3.0-only
"""The API key, which every request needs except those for the page, /ping and /ready."""

import hmac
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from ...machine.address import network
from ..replies import reply

WRONG_KEYS_A_MINUTE = 10
"""Different wrong keys that an address may send in a minute; then it gets 429 until the minute ends. An old key that a
client sends again and again counts once, because it is not a guess."""

_OPEN = {(method, path) for method in ("GET", "HEAD") for path in ("/", "/ping", "/ready")}
_MINUTE_SECONDS = 60
_MAX_CLIENTS = 10_000


class ApiKeyMiddleware:
    """Answers 401 to a request without the right key, before it reads the body; 429 to an address that guesses keys."""

    def __init__(
        self,
        app: ASGIApp,
        key: str,
        also_open: Collection[tuple[str, str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """also_open: more methods and paths that need no key. clock: seconds."""
        self._app, self._key, self._open, self._clock = app, key.encode(), {*_OPEN, *also_open}, clock
        self._throttle = KeyThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope.get("method"), scope["path"]) in self._open:
            await self._app(scope, receive, send)
            return
        keys = [value for name, value in scope["headers"] if name == b"api-key"]
        is_right = len(keys) == 1 and hmac.compare_digest(keys[0], self._key)
        wait = self._throttle.seconds_to_wait(network((scope.get("client") or ("",))[0]), keys, is_right, self._clock())
        if is_right and not wait:
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif wait:
            await reply({"detail": "Too many wrong API keys"}, 429, retry_after=wait)(scope, receive, send)
        else:
            await reply({"detail": "Invalid API key"}, 401)(scope, receive, send)


@dataclass
class _Client:
    is_trusted: bool = False
    minute_ends: float = 0.0
    wrong_keys: set[int] = field(default_factory=set)  # hashes


class KeyThrottle:
    """Counts wrong keys by address. An address that has used the right key is never blocked, so a guesser behind the
    same proxy can't lock others out."""

    def __init__(self) -> None:
        self._client = lru_cache(_MAX_CLIENTS)(lambda address: _Client())

    def seconds_to_wait(self, address: str, keys: Collection[bytes], is_right: bool, now: float) -> float:
        """Counts the request's keys. Returns the seconds until the address may send a key again; 0 if it may now. now:
        seconds."""
        if not keys:  # this is no guess, and must not push an address out of the cache
            return 0
        client = self._client(address)
        if client.minute_ends <= now:
            client.wrong_keys.clear()
        is_slowed = len(client.wrong_keys) >= WRONG_KEYS_A_MINUTE
        if is_right and (client.is_trusted or not is_slowed):
            client.is_trusted = True
            return 0
        if not is_right and not is_slowed:
            if not client.wrong_keys:
                client.minute_ends = now + _MINUTE_SECONDS
            client.wrong_keys.update(map(hash, keys))
        return client.minute_ends - now if is_slowed else 0

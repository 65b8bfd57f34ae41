# SPDX-License-Identifier: AGPL-3.0-only
"""Limits on clients' connections: how long one may be silent, and how many may be open."""

import asyncio
import resource
from collections.abc import Collection
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..machine.address import network

LINGER_SECONDS = 1.0
"""How long an idle connection stays open when the process ends, because a request may be in transit on it."""
HEADER_SECONDS = 15.0
"""For the header of a request: the first one from the connection on, later ones from their first byte on."""
REST_SECONDS = 60.0
"""For the rest of a body that was refused, and for a client to read more of a reply."""
MOST_CONNECTIONS = 4000
"""Per process; at most half of its file descriptors, because models and newly accepted connections need some too."""
MOST_OF_ONE_ADDRESS = 1000
"""At most half of the connections of a process. A normal client has a dozen. A proxy has one address for all its
clients, but at most 512 uploads and 100 requests of them are in progress."""
YIELD_SECONDS = 2.0
"""A connection whose silence after a reply is shorter is closed to make room only if there is no other to close."""

_READ_SECONDS = 0.01  # until the first bytes of a new client are read


class LimitedH11Protocol(H11Protocol):
    """Uvicorn's connection, closed if its client is silent for too long, and LINGER_SECONDS after the server begins to
    end. If there are too many connections, it closes the one that was silent longest. It closes none with a request in
    progress, which has limits of its own.

    This is the only place that uses more than a library's public interface: uvicorn's h11_impl, its attributes,
    `handle_events`, `on_response_complete` and `shutdown`. uvicorn has no setting for this, and would lose a request
    that a client sends just as the server ends.
    """

    _open: ClassVar[set["LimitedH11Protocol"]] = set()
    _network = ""
    _limit: float | None = None  # seconds that the client may be silent now; None: its request is in progress
    _silent_since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client:
            host, port = self.client
            self.client = host.removeprefix("::ffff:"), port  # so that FORWARDED_ALLOW_IPS matches an IPv4 address
            self._network = network(host)
        self._open.add(self)
        self._watch()
        self.loop.call_later(_READ_SECONDS, self._make_room)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def shutdown(self) -> None:
        self.loop.call_later(LINGER_SECONDS, self._close)

    def _close(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _watch(self) -> None:
        """Starts a new limit on the client's silence if the service now waits for something else."""
        limit = self._seconds()
        if limit != self._limit and self in self._open:
            self._limit, self._silent_since = limit, self.loop.time()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(limit, self.transport.abort) if limit is not None else None

    def _seconds(self) -> float | None:
        if self.transport.is_closing() or self.flow.write_paused:
            return REST_SECONDS
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        if self.conn.their_state is not h11.IDLE:
            return REST_SECONDS
        return HEADER_SECONDS if self.cycle is None or self.conn.trailing_data[0] else self.timeout_keep_alive

    def _make_room(self) -> None:
        most = min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        if len(self._open) > (most_of_one := min(MOST_OF_ONE_ADDRESS, most // 2)):
            self._close_one([other for other in self._open if other._network == self._network], most_of_one)
            self._close_one(self._open, most)

    def _close_one(self, connections: Collection["LimitedH11Protocol"], most: int) -> None:
        if len(connections) > most:
            silent = [other for other in connections if other._limit is not None and other is not self]
            longest = min(silent, key=self._order, default=self)
            longest._forget()
            longest.transport.abort()

    @staticmethod
    def _order(other: "LimitedH11Protocol") -> tuple[bool, float]:
        is_in_use = other.cycle is not None and other.loop.time() < other._silent_since + YIELD_SECONDS
        return is_in_use, other._silent_since

    def _forget(self) -> None:
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()

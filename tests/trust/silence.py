# SPDX-License-Identifier: AGPL-3.0-only
"""Clients that connect and then send nothing, or only a part of a request."""

import contextlib
import resource
import select
import socket
from collections.abc import Iterator, Sequence

from service import until
from trust.raw import connect
from trust.tally import count
from trust.traffic import answered, mixed, running_traffic, same

BEGINNINGS = (b"", b"G", b"GET /ping HTTP/1.1\r\nHost: x\r\n")


@contextlib.contextmanager
def silent(url: str, number: int, sent: Sequence[bytes] = BEGINNINGS) -> Iterator[list[socket.socket]]:
    """Opens so many connections and sends one of these on each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count("faults injected", number)
    with contextlib.ExitStack() as stack:
        connections = []
        for i in range(number):
            connection = stack.enter_context(connect(url))
            with contextlib.suppress(ConnectionError):  # the service may have closed it already
                connection.sendall(sent[i % len(sent)])
            connections.append(connection)
        yield connections


def closed(connections: Sequence[socket.socket]) -> list[socket.socket]:
    """The connections that the service has closed, if no reply is due on any of them."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(0)}
    return [connection for connection in connections if connection.fileno() in ready]


def outlast(url: str, number: int = 1100) -> None:
    """Asserts that so many silent connections delay no request, and that all of them are closed."""
    asked = answered(url, mixed(each=1))
    with running_traffic(url, asked, clients=4) as seen, silent(url, number) as connections:
        before = seen.right
        until(lambda: len(closed(connections)) == number)
        until(lambda: seen.right > before)
        assert same(answered(url, asked), asked), "a new client is served"
    seen.check()
    assert seen.busy == 0

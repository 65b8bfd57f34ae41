# SPDX-License-Identifier: AGPL-3.0-only
"""Sends photos through HAProxy, each once, while a test makes machines fail."""

import contextlib
from collections.abc import Iterator, Sequence

from scale import tally
from service import until
from trust.traffic import Request, Traffic, running_traffic


@contextlib.contextmanager
def sending(fault: str, url: str, photos: Sequence[Request], clients: int = 12, least: int = 0) -> Iterator[Traffic]:
    """Sends photos before, during and after the context, and checks that each gets its own answer. least: the least
    number to send in total."""
    with running_traffic(url, photos, clients) as seen:
        until(lambda: seen.right >= clients)
        yield seen
        before = seen.right
        until(lambda: seen.right >= max(before + 2 * clients, least), 300)
    tally.FAULTS.append((fault, seen.sent, seen.right, len(seen.wrong), len(seen.lost) + seen.busy, seen.slowest))
    assert (seen.wrong, seen.lost, seen.busy) == ([], [], 0)
    assert seen.sent == seen.right

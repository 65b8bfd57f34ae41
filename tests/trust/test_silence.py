# SPDX-License-Identifier: AGPL-3.0-only
"""The service closes connections that send or receive nothing, so they don't keep other clients out."""

import contextlib
import os
import resource
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from mt_photos_ml.server.connection import YIELD_SECONDS
from mt_photos_ml.server.logs import NO_DESCRIPTORS
from service import Service, running, until
from trust.raw import connect, received, status_of
from trust.silence import closed, outlast, silent
from trust.tally import count

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITED = ["bash", "-c", 'ulimit -Sn "$0"; ulimit -Hn "$1"; shift; exec "$@"']


def test_a_thousand_silent_connections_neither_block_other_clients_nor_fill_the_log(
    cache: Path, tmp_path: Path
) -> None:
    with running(tmp_path, demo_environment(cache), wrapper=[*LIMITED, "512", "1024"]) as service:
        assert resource.prlimit(service.pid, resource.RLIMIT_NOFILE) == (1024, 1024), "the limit is raised"
        outlast(service.url)
        log = service.log.read_text()
    assert [line for line in log.splitlines() if "ERROR" in line] == []
    assert len(log) < 1_000_000


def test_a_header_must_arrive_in_time_from_its_first_byte_and_keep_alive_waits_longer(
    service: Service,
) -> None:
    with silent(service.url, 3) as first, silent(service.url, 5, [PING]) as kept, connect(service.url) as slow:
        assert [status_of(received(connection, 60)) for connection in kept] == [200] * 5
        for connection in kept[:2]:
            connection.sendall(b"POST /check HTT")
        dripped = 0
        while not closed([slow]):  # a byte a second
            with contextlib.suppress(OSError):  # the service closed it meanwhile
                slow.sendall(PING[dripped : dripped + 1])
            dripped += 1
            time.sleep(1)
        assert dripped < len(PING)
        until(lambda: len(closed([*first, *kept[:2]])) == 5)
        for connection in kept[2:]:
            connection.sendall(PING)
            assert status_of(received(connection, 60)) == 200


def test_connections_close_if_a_rejected_body_never_ends_or_replies_are_not_read(service: Service) -> None:
    before = descriptors(service)
    refused = b"POST /ocr HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n1"
    with silent(service.url, 2, [refused]) as (dripping, other), silent(service.url, 2, [PING]) as greedy:
        assert [status_of(received(connection, 60)) for connection in (dripping, other)] == [401] * 2
        for connection in greedy:  # requests the page without reading until the service stops receiving
            connection.settimeout(2)
            with pytest.raises(TimeoutError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000_000)
        assert descriptors(service) > before

        def are_closed() -> bool:
            with contextlib.suppress(OSError):
                dripping.send(b"1")
            return descriptors(service) <= before

        until(are_closed, 120)


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


def test_an_address_with_too_many_connections_loses_its_own_longest_silent_ones(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, demo_environment(cache), wrapper=[*LIMITED, "64", "64"]) as service:  # so 16 for an address
        other = HTTPConnection(service.url.removeprefix("http://"), timeout=60, source_address=("127.0.0.2", 0))
        with contextlib.closing(other), silent(service.url, 1, [PING]) as used, ExitStack() as stack:
            assert ping(other) == 200
            assert status_of(received(used[0], 60)) == 200
            crowd = [stack.enter_context(silent(service.url, 1))[0] for _ in range(40)]
            until(lambda: len(closed(crowd)) >= 25)
            assert closed(crowd) == crowd[:25], "one more connection is open, which just got a reply"
            time.sleep(YIELD_SECONDS)
            assert closed(used) == []
            stack.enter_context(silent(service.url, 1))
            until(lambda: closed(used) == used)
            assert closed(crowd) == crowd[:25]
            assert ping(other) == 200


def ping(connection: HTTPConnection) -> int:
    connection.request("GET", "/ping")
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


def test_running_out_of_file_descriptors_is_logged_once_and_takes_little_cpu(service: Service) -> None:
    soft, hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (4, hard))
    with silent(service.url, 10, [PING]) as waiting:
        until(lambda: NO_DESCRIPTORS in service.log.read_text())
        began = cpu_seconds(service)
        time.sleep(3)
        assert cpu_seconds(service) - began < 0.8
        log = service.log.read_text()
        assert (log.count(NO_DESCRIPTORS), log.count("socket.accept")) == (1, 0)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert [status_of(received(connection, 60)) for connection in waiting] == [200] * 10
    count("faults injected")


def cpu_seconds(service: Service) -> float:
    fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

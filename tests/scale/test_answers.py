# SPDX-License-Identifier: AGPL-3.0-only
"""What HAProxy passes on, what it retries, and how fast it is."""

import contextlib
import itertools
import os
import signal
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from demo.pictures import colour_photo
from photos import jpeg
from scale import tally
from scale.balancer import Balancer, balancing, balancing_by_name
from scale.network import Network
from scale.replicas import Replica
from service import until
from trust.raw import connect, upload_head
from trust.traffic import Request, form, running_traffic

RED = {"file": jpeg(colour_photo("red", (320, 240)))}


def test_an_error_that_no_other_machine_would_avoid_reaches_the_client_without_a_retry(
    balancer: Balancer, machines: list[Replica]
) -> None:
    before = balancer.metric("backend_retry_warnings_total")
    with balancer.client() as client, balancer.client("a wrong key") as stranger:
        assert stranger.post("/ocr", files=RED).status_code == 401
        assert client.post("/ocr", files={"other": b""}).status_code == 422
        assert client.post("/nothing").status_code == 404
        assert client.post("/ocr", files={"file": bytes(130_000_000)}).status_code == 413
        assert client.post("/ocr", files={"file": b"no photo"}).json()["msg"]
        for machine in machines:
            machine.pace("fails")
        assert client.post("/clip/img", files=RED).status_code == 500
    assert balancer.metric("backend_retry_warnings_total") == before


def test_a_photo_whose_client_hangs_up_leaves_the_queue(balancer: Balancer, machines: list[Replica]) -> None:
    for machine in machines:
        machine.pace(60)
    body, kind = form(RED["file"])
    with contextlib.ExitStack() as clients:

        def send(number: int) -> list[socket.socket]:
            made = [clients.enter_context(connect(balancer.url)) for _ in range(number)]
            for connection in made:
                connection.sendall(upload_head("/clip/img", len(body), kind) + body)
            return made

        places = sum(machine.photos + 1 for machine in machines)
        send(places)
        until(lambda: balancer.metric("server_current_sessions", proxy="photos") == places)
        waiting = send(20)
        until(lambda: balancer.metric("backend_current_queue", proxy="photos") == 20)
        for connection in waiting:
            connection.close()
        until(lambda: balancer.metric("backend_current_queue", proxy="photos") == 0, 30)
    until(lambda: balancer.metric("backend_current_sessions", proxy="photos") == 0)
    for machine in machines:  # else a thread would go on with its photo for a minute
        os.kill(machine.worker, signal.SIGKILL)


def test_without_a_machine_a_photo_gets_a_503_in_the_services_form(
    network: Network, machines: list[Replica], tmp_path: Path
) -> None:
    network.unplug(machines[2].machine)
    with balancing(network.machine(), tmp_path, machines[2].words) as balancer, balancer.client() as client:
        until(lambda: balancer.up() == 0)
        answer = client.post("/clip/img", files=RED)
        ready = httpx.get(f"http://{balancer.machine.address}:8404/ready")
        assert (answer.status_code, ready.status_code) == (503, 503)
        assert (answer.json(), answer.headers["retry-after"]) == ({"result": [], "msg": "no machine is up"}, "10")
        network.plug(machines[2].machine)
        until(lambda: client.post("/clip/img", files=RED).status_code == 200)
        assert httpx.get(f"http://{balancer.machine.address}:8404/ready").status_code == 200


def test_a_search_does_not_wait_behind_photos(balancer: Balancer, photos: list[Request], long: bool) -> None:
    texts, took = itertools.count(), []
    with running_traffic(balancer.url, photos[:8], 32) as seen, balancer.client() as client:
        until(lambda: seen.right >= 32)
        for _ in range(300 if long else 40):
            began = time.monotonic()
            assert client.post("/clip/txt", json={"text": f"red {next(texts)}"}).status_code == 200
            took.append(time.monotonic() - began)
    seen.check()
    p50, p95 = statistics.median(took), statistics.quantiles(took, n=20)[-1]
    told = f"p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms; slowest photo {seen.slowest:.1f} s"
    tally.MEASURED.append(f"searches beside 32 photo clients: {told}")
    assert p50 < seen.slowest / 3


def test_machines_found_by_dns_share_the_photos(
    network: Network, machines: list[Replica], photos: list[Request], long: bool, tmp_path: Path
) -> None:
    """With --long, the throughput of one, two and three machines is at least 0.9 of the devices' own."""
    seconds, pace, reached = 20 if long else 3, 0.4, []
    for machine in machines:
        machine.pace(pace)
    for number in range(1 if long else len(machines), len(machines) + 1):
        asked = machines[-number:]
        (folder := tmp_path / str(number)).mkdir()
        with balancing_by_name(network.hub, folder, asked) as balancer:
            reached.append(_throughput(balancer, photos[:8], seconds, 4 * sum(machine.photos for machine in asked)))
            served = [balancer.sent_to(f"replica{slot}") for slot in range(1, 21)]
        ideal = sum(machine.photos for machine in asked) / pace
        tally.MEASURED.append(f"{number} machines by name: {reached[-1]:.1f} photos a second of {ideal:.1f}")
        assert sum(map(bool, served)) == number
        assert not long or reached[-1] >= 0.9 * ideal


def _throughput(balancer: Balancer, photos: Sequence[Request], seconds: float, clients: int) -> float:
    with running_traffic(balancer.url, photos, clients) as seen:
        until(lambda: seen.right >= clients)
        first, began = seen.right, time.monotonic()
        time.sleep(seconds)
        reached = (seen.right - first) / (time.monotonic() - began)
    seen.check()
    return reached

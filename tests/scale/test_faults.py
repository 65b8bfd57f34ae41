# SPDX-License-Identifier: AGPL-3.0-only
"""Machines fail while photos arrive through HAProxy: every photo gets exactly one answer, the right one."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from demo.models import build_clip
from demo.pictures import colour_photo
from photos import jpeg
from scale.balancer import Balancer, balancing
from scale.conftest import Start
from scale.network import Network
from scale.replicas import Replica
from scale.sending import sending
from service import KEY, until
from trust.traffic import Request, answered, form


def test_nothing_fails(balancer: Balancer, photos: list[Request], least: int) -> None:
    with sending("none", balancer.url, photos, least=least):
        pass


def test_a_worker_is_killed(balancer: Balancer, machines: list[Replica], photos: list[Request], least: int) -> None:
    with sending("kill -9 of each worker in turn", balancer.url, photos, least=least):
        for machine in machines:
            killed = machine.worker
            os.kill(killed, signal.SIGKILL)
            until(lambda: machine.worker not in (0, killed))  # noqa: B023
            machine.start()


def test_a_parent_is_killed(balancer: Balancer, machines: list[Replica], photos: list[Request], least: int) -> None:
    with sending("kill -9 of a parent, started again", balancer.url, photos, least=least):
        machines[0].parent.kill()
        until(lambda: not machines[0].machine.pids)
        machines[0].parent.wait()
        machines[0].start()


def test_a_container_is_killed(balancer: Balancer, machines: list[Replica], photos: list[Request], least: int) -> None:
    with sending("kill -9 of parent and worker, started again", balancer.url, photos, least=least):
        machines[0].machine.signal(signal.SIGKILL)
        machines[0].parent.wait()
        time.sleep(1)
        machines[0].start()


@pytest.mark.parametrize(("number", "how"), [(0, ""), (1, " with DRAIN")])
def test_a_service_is_stopped(
    balancer: Balancer, machines: list[Replica], photos: list[Request], least: int, number: int, how: str
) -> None:
    with sending(f"SIGTERM{how}, started again", balancer.url, photos, least=least):
        machines[number].parent.send_signal(signal.SIGTERM)
        assert machines[number].parent.wait(60) == 0
        machines[number].start()


def test_every_service_is_restarted(
    balancer: Balancer, machines: list[Replica], photos: list[Request], least: int
) -> None:
    with sending("/restart_v2 to each in turn", balancer.url, photos, least=least):
        for machine in machines:
            before = machine.worker
            told = httpx.post(f"{machine.url}/restart_v2", headers={"api-key": KEY}, timeout=60)
            assert told.json() == {"result": "pass"}
            until(lambda: machine.worker not in (0, before))  # noqa: B023


def test_a_machine_pauses(balancer: Balancer, machines: list[Replica], photos: list[Request], least: int) -> None:
    with sending("paused for 6 s", balancer.url, photos, least=least):
        machines[0].machine.signal(signal.SIGSTOP)
        time.sleep(6)
        machines[0].machine.signal(signal.SIGCONT)


def test_a_link_is_cut(
    network: Network, balancer: Balancer, machines: list[Replica], photos: list[Request], least: int, long: bool
) -> None:
    seconds = 15 if long else 8
    with sending(f"link cut for {seconds} s", balancer.url, photos, least=least):
        network.unplug(machines[0].machine)
        time.sleep(seconds)
        network.plug(machines[0].machine)


def test_a_backup_machine_gets_photos_only_while_the_other_sleeps(
    network: Network, machines: list[Replica], photos: list[Request], least: int, tmp_path: Path
) -> None:
    network.unplug(machines[0].machine)
    words = machines[0].words, f"{machines[1].words} backup"
    with balancing(network.machine(), tmp_path, *words) as balancer:
        with sending("asleep from the start, then awake", balancer.url, photos, 6, least):
            network.plug(machines[0].machine)
            until(lambda: balancer.up() == 2)
            to_the_backup = balancer.sent_to("2")
        assert 0 < balancer.sent_to("2") <= to_the_backup + 6


def test_queues_are_nearly_full(
    network: Network, start: Start, photos: list[Request], least: int, tmp_path: Path
) -> None:
    """There are more clients than places; HAProxy sends each machine only as many photos as it has places."""
    few = [start(waiting=2), start(waiting=2)]
    for machine in few:
        machine.start()
    words = (machine.words for machine in few)
    with (
        balancing(network.machine(), tmp_path, *words) as balancer,
        sending("queues nearly full: 32 clients, 8 places", balancer.url, photos, 32, least),
    ):
        pass
    for machine in few:
        machine.machine.signal(signal.SIGKILL)


def test_a_machine_has_another_clip_model(
    network: Network,
    start: Start,
    machines: list[Replica],
    photos: list[Request],
    cache: Path,
    least: int,
    tmp_path: Path,
) -> None:
    """It gets no photos, not even in HAProxy's first seconds."""
    build_clip(cache / "clip" / "other", dim=768)
    other = start(CLIP_VISUAL_MODEL_NAME="other", CLIP_TEXTUAL_MODEL_NAME="other")
    other.start()
    with balancing(network.machine(), tmp_path, machines[1].words, other.words) as balancer:
        with sending("another CLIP model", balancer.url, photos, least=least):
            pass
        assert balancer.sent_to("2") == 0
    other.machine.signal(signal.SIGKILL)


def of_megabytes(size: int) -> Request:
    """A photo with this many megabytes appended."""
    return Request("/clip/img", *form(jpeg(colour_photo("red", (320, 240))) + bytes(size * 1_000_000)))


def test_a_body_that_just_fits_into_the_buffer_is_sent_again(balancer: Balancer, machines: list[Replica]) -> None:
    asked = answered(machines[0].url, [of_megabytes(15)])
    with sending("kill -9 of a worker, bodies of 15 MB", balancer.url, asked, 6):
        os.kill(machines[0].worker, signal.SIGKILL)


def test_a_body_over_the_buffer_passes_through(balancer: Balancer, machines: list[Replica]) -> None:
    asked = answered(machines[0].url, [of_megabytes(40)])
    with sending("body over the buffer, 40 MB", balancer.url, asked, 2):
        pass

# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark compares fairly: in turns, with services that do the same work, against targets as they are written."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from bench import measure, report
from bench.floor import Floor
from bench.load import Client, photo_request
from bench.service import Launcher, Service
from demo.__main__ import CLIP, FACES, build
from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg

WORDS = ["Departures from platform", "Hamburg on time", "Please keep your luggage"]


def test_all_take_turns_and_another_is_first_each_time() -> None:
    order: list[str] = []
    times = measure.in_turn({name: partial(order.append, name) for name in "abc"}, rounds=3, warm_up=1)
    assert [order[i : i + 3] for i in range(3, 12, 3)] == [list("abc"), list("bca"), list("cab")]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(
    ("limit", "value", "state"),
    [("≥ 2.00", 2.0, "met"), ("≥ 2.00", 1.99, "not met"), ("≤ 20 ms", 20, "met"), ("≤ 20 ms", 21, "not met")],
)
def test_a_target_is_met_at_its_limit_and_not_beyond(limit: str, value: float, state: str) -> None:
    assert report.Target("what", "a", limit).row({"a": value})[3] == state


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    folder = tmp_path_factory.mktemp("bench")
    build(folder / "cache")
    return Launcher(folder / "cache", folder / "logs", demo_environment(folder / "cache"))


@pytest.fixture(scope="module")
def services(launcher: Launcher) -> Iterator[list[Service]]:
    with launcher.run("ours") as ours, launcher.run("straightforward") as straightforward:
        yield [ours, straightforward]


def test_all_three_see_find_and_read_the_same(services: list[Service], launcher: Launcher) -> None:
    floor = Floor(launcher.cache / "clip" / CLIP, launcher.cache / "facial-recognition" / FACES, 1)
    photo, group = jpeg(colour_photo("red", (800, 600))), jpeg(group_photo((1600, 1200), [3, 7, 11])[0])
    page = jpeg(text_page(WORDS, (1600, 1200))[0])
    for service in services:
        with Client(service.port) as client:
            seen = np.array(client.result(photo_request("/clip/img", photo)), float)
            assert np.corrcoef(seen, np.array(floor.tasks["/clip/img"](photo), float))[0, 1] > 0.999
            faces = [face["embedding"] for face in client.result(photo_request("/represent", group))]
            assert (np.corrcoef(faces, floor.faces(group))[:3, 3:].max(axis=1) > 0.99).all()
            assert client.result(photo_request("/ocr", page))["texts"] == floor.ocr(page) == WORDS


def test_the_client_takes_no_failure_for_an_answer(services: list[Service]) -> None:
    for service in services:
        with Client(service.port) as client, pytest.raises(RuntimeError, match="404"):
            client.result(photo_request("/nowhere", b""))
    with Client(services[0].port) as client, pytest.raises(RuntimeError, match="photo"):
        client.result(photo_request("/clip/img", b"no photo"))

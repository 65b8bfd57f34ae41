# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark's ratios, client, sections and page; and that the services it compares do the same work."""

import inspect
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench import measure, report
from bench.floor import Floor, cut, find_lines
from bench.load import CHECK, Client, photo_request, send, text_request, under_load
from bench.sections import SECTIONS
from bench.service import ROOT, Launcher, Service
from demo.__main__ import CLIP, FACES, build
from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg

WORDS = ["Departures from platform", "Hamburg on time", "Please keep your luggage"]


def test_a_ratio_is_the_median_of_pairs_and_not_of_sums() -> None:
    assert measure.ratio([10, 20, 40, 80], [5, 10, 20, 40]) == (2, 2, 2)
    assert str(measure.ratio([1, 2, 3], [1, 1, 1])) == "2.00 (1.50–2.50)"


def test_all_take_turns_and_another_is_first_each_time() -> None:
    order: list[str] = []
    times = measure.in_turn({name: partial(order.append, name) for name in "abc"}, rounds=3, warm_up=1)
    assert [order[i : i + 3] for i in range(3, 12, 3)] == [list("abc"), list("bca"), list("cab")]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_memory_is_that_of_the_processes_and_its_peak_is_kept() -> None:
    own = measure.memory([os.getpid()])
    assert 0 < own.anonymous < own.resident
    assert os.getpid() in measure.family(os.getppid())
    with measure.peak([os.getpid()]) as most:
        kept = np.ones(10_000_000)
        time.sleep(0.2)
        del kept
    assert most[-1].anonymous > own.anonymous + 40


def test_a_target_is_met_at_its_limit_and_not_beyond() -> None:
    for limit, value, best, state in (
        ("≥ 2.00", 2.0, 1.3, "met"),
        ("≥ 2.00", 1.2, 1.3, "not met, nor by the floor: 1.30"),
        ("≥ 2.00", 1.99, 2.3, "not met"),
        ("≤ 20 ms", 20, 0, "met"),
        ("≤ 20 ms", 21, 30, "not met"),
    ):
        assert report.Target("what", "a", limit, "best").row({"a": value, "best": best})[3] == state


def test_the_page_has_every_target_and_table(tmp_path: Path) -> None:
    table = report.Table("One | two", "How to read it.", ("route", "ms"), [("/clip/img", 12)])
    figures = {target.figure: float(target.limit.split()[1]) for target in report.TARGETS}
    page = report.markdown([table], figures, report.machine(), "make bench", "chart.svg")
    assert "\n\n## One | two\n\nHow to read it.\n\n| route | ms |\n| --- | --- |\n| /clip/img | 12 |\n" in page
    assert page.count("| met |") == len(report.TARGETS)
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        report.chart(figures, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    folder = tmp_path_factory.mktemp("bench")
    build(folder / "cache")
    return Launcher(folder / "cache", folder / "logs", demo_environment(folder / "cache"))


@pytest.fixture(scope="module")
def services(launcher: Launcher) -> Iterator[list[Service]]:
    with launcher.run("ours") as ours, launcher.run("straightforward") as straightforward:
        yield [ours, straightforward]


@pytest.fixture(scope="module")
def floor(launcher: Launcher) -> Floor:
    return Floor(launcher.cache / "clip" / CLIP, launcher.cache / "facial-recognition" / FACES, 1)


def ask(services: list[Service], request: bytes) -> list[Any]:
    answers = []
    for service in services:
        with Client(service.port) as client:
            answers.append(client.result(request))
    return answers


def test_the_client_takes_no_failure_for_an_answer(services: list[Service]) -> None:
    for service in services:
        with pytest.raises(RuntimeError, match="404"):
            ask([service], photo_request("/nowhere", b""))
    with pytest.raises(RuntimeError, match="photo"):
        ask(services[:1], photo_request("/clip/img", b"no photo"))


def test_several_clients_send_every_request_once(services: list[Service]) -> None:
    a_second, waits = send(services[1].port, [CHECK] * 20, 4)
    assert len(waits) == 20
    assert 20_000 / sum(waits) < a_second * 1.01 < 4 * 1.01 * 20_000 / sum(waits)
    with under_load(services[1].port, [CHECK] * 3):
        pass


def test_all_three_see_the_same_in_photo_and_text(services: list[Service], floor: Floor) -> None:
    photo = jpeg(colour_photo("red", (800, 600)))
    seen = [floor.tasks["/clip/img"](photo), *ask(services, photo_request("/clip/img", photo))]
    for vectors in (seen, ask(services, text_request("red"))):
        assert np.corrcoef([np.array(vector, float) for vector in vectors]).min() > 0.999


def test_all_three_find_the_same_faces(services: list[Service], floor: Floor) -> None:
    photo = jpeg(group_photo((1600, 1200), [3, 7, 11])[0])
    for answer in ask(services, photo_request("/represent", photo)):
        cosines = np.corrcoef([face["embedding"] for face in answer], floor.faces(photo))[:3, 3:]
        assert len(answer) == 3
        assert (cosines.max(axis=1) > 0.99).all()


def test_all_three_read_the_same_lines(services: list[Service], floor: Floor) -> None:
    page = jpeg(text_page(WORDS, (1600, 1200))[0])
    assert [floor.ocr(page), *(answer["texts"] for answer in ask(services, photo_request("/ocr", page)))] == [WORDS] * 3


def test_the_floor_cuts_a_slanted_line_upright() -> None:
    page = np.zeros((300, 400), np.float32)
    cv2.line(page, (60, 130), (340, 150), 1.0, 24)
    (box,) = find_lines(page)
    line = cut(np.repeat((page * 255).astype(np.uint8)[:, :, None], 3, axis=2), box, 1)
    assert (line[:, 20:-20].mean(axis=(1, 2))[17:32] > 250).all()


def test_every_table_of_the_page_has_its_section() -> None:
    titles = re.findall("^## (.+)$", (ROOT / "docs" / "benchmarks.md").read_text(), re.M)[1:]
    source = "".join(inspect.getsource(section) for section in SECTIONS.values())
    assert [title for title in titles if f'"{title}"' not in source] == []

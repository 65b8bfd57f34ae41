# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark's own arithmetic, its client and its tables; and that the service it compares with does our work."""

import json
import os
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bench import load, measure, report
from bench.floor import Floor
from bench.load import CHECK, Client, photo_request, text_request
from bench.service import Launcher, Service
from demo.__main__ import CLIP, FACES, build
from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg

WORDS = ["Departures from platform", "Hamburg on time", "Please keep your luggage"]


def test_a_ratio_is_the_median_over_pairs_so_a_machine_that_slows_down_does_not_matter() -> None:
    ratio = measure.pairs([10, 20, 40, 80], [5, 10, 20, 40])
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)
    assert str(measure.pairs([1, 2, 3], [1, 1, 1])) == "2.00 (1.50–2.50)"


def test_a_percentile_lies_between_the_values_around_it() -> None:
    values = [float(i) for i in range(101)][::-1]
    assert measure.percentile(values, 99) == 99
    assert measure.percentile([1, 2], 50) == 1.5
    assert measure.percentile([7], 99) == 7


def test_all_take_turns_and_another_is_first_each_time() -> None:
    order: list[str] = []
    times = measure.in_turn({name: partial(order.append, name) for name in "abc"}, rounds=3, warm_up=1)
    assert [order[i : i + 3] for i in range(3, 12, 3)] == [list("abc"), list("bca"), list("cab")]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_memory_is_that_of_a_process_and_of_what_it_started() -> None:
    own = measure.memory([os.getpid()])
    assert 0 < own.anonymous < own.resident
    assert os.getpid() in measure.family(os.getppid())
    with measure.peak(lambda: [os.getpid()]) as most:
        kept = np.ones(10_000_000)
    assert most[0].anonymous >= own.anonymous
    assert kept.size


def test_what_was_prepared_from_a_model_does_not_count_as_its_size(tmp_path: Path) -> None:
    for name in ("model.onnx", "prepared/key/model.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1_000_000))
    assert measure.megabytes([tmp_path]) == 1


class Echo(BaseHTTPRequestHandler):
    """Counts requests, and answers each with its length."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        Echo.asked += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        reply = json.dumps({"result": len(body), **({"msg": "bad"} if self.path == "/bad" else {})}).encode()
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


def test_the_client_measures_whole_requests_over_one_connection(port: int) -> None:
    with Client(port) as client:
        assert client.result(photo_request("/clip/img", b"x" * 100_000)) > 100_000
        assert client.result(text_request("飞机")) > 0
        assert measure.milliseconds(lambda: client.ask(CHECK)) > 0


def test_the_client_takes_no_failure_for_an_answer(port: int) -> None:
    with Client(port) as client:
        with pytest.raises(RuntimeError, match="503"):
            client.ask(photo_request("/busy", b""))
        with pytest.raises(RuntimeError, match="bad"):
            client.result(photo_request("/bad", b""))


def test_a_crowd_sends_every_request_once(port: int) -> None:
    before = Echo.asked
    crowd = load.at_once(port, [CHECK] * 20, 4)
    assert Echo.asked - before == len(crowd.waits) == 20
    assert crowd.a_second == pytest.approx(20 / crowd.seconds)
    with load.under(port, [CHECK] * 3):
        pass


def results() -> report.Results:
    table = report.Table("One | two", "How to read it.", ("route", "ms"))
    table.add("/clip/img", 12)
    figures = {target.figure: target.limit for target in report.TARGETS}
    figures |= {f"ms {r} {p} {who}": 100.0 for r, p in SHOWN for who in ("floor", "ours", "straightforward")}
    return report.Results([table], figures)


SHOWN = [
    *((route, photo) for route in ("/clip/img", "/represent") for photo in ("12 MP JPEG", "1440×1080 JPEG")),
    ("/ocr", "12 MP page"),
    ("/ocr", "1440×1080 page"),
]


def test_a_target_is_met_at_its_limit_and_not_beyond() -> None:
    least, most = report.Target("a", "a", 2, at_least=True), report.Target("b", "b", 20, unit=" ms", digits=0)
    assert least.row({"a": 2}) == ["a", "≥ 2.00", "2.00", "met"]
    assert least.row({"a": 1.99})[3] == "not met"
    assert most.row({"b": 21}) == ["b", "≤ 20 ms", "21 ms", "not met"]
    assert most.row({})[3] == "not measured"


def test_a_target_that_the_floor_does_not_reach_says_so() -> None:
    target = report.Target("a", "a", 2, at_least=True, most="floor")
    assert target.row({"a": 1.2, "floor": 1.3})[3] == "not met, nor by the floor: 1.30"
    assert target.row({"a": 1.2, "floor": 2.3})[3] == "not met"
    assert target.row({"a": 2.1, "floor": 1.9})[3] == "met"


def test_the_page_has_the_targets_every_table_and_the_machine() -> None:
    page = report.markdown(results(), report.machine() | {"onnxruntime": "1.2.3"}, "make bench", "chart.svg")
    assert "| /clip/img | 12 |" in page
    assert "## One | two\n\nHow to read it.\n\n| route | ms |\n| --- | --- |\n" in page
    assert page.count("| met |") == len(report.TARGETS)
    assert "- onnxruntime: 1.2.3" in page
    assert "cores" in page


def test_the_chart_is_the_same_file_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        report.chart(results().figures, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert b"date" not in drawn
    assert len(drawn) < 50_000


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    folder = tmp_path_factory.mktemp("bench")
    build(folder / "cache")
    return Launcher(folder / "cache", folder / "logs", demo_environment(folder / "cache"))


@pytest.fixture(scope="module")
def services(launcher: Launcher) -> Iterator[list[Service]]:
    with launcher.ours() as ours, launcher.straightforward() as straightforward:
        yield [ours, straightforward]


def asked(services: list[Service], request: bytes) -> list[object]:
    answers = []
    for service in services:
        with Client(service.port) as client:
            answers.append(client.result(request))
    return answers


def test_all_three_see_the_same_in_a_photo(services: list[Service], launcher: Launcher) -> None:
    photo = jpeg(colour_photo("red", (800, 600)))
    floor = Floor(launcher.cache, CLIP, FACES, 1).clip(photo)
    for answer in asked(services, photo_request("/clip/img", photo)):
        vector = np.array(answer, np.float64)
        assert vector @ floor / np.linalg.norm(vector) > 0.999


def test_all_three_find_the_same_faces(services: list[Service], launcher: Launcher) -> None:
    picture, drawn = group_photo((1600, 1200), [3, 7, 11])
    floor = Floor(launcher.cache, CLIP, FACES, 1).faces(jpeg(picture))
    for answer in asked(services, photo_request("/represent", jpeg(picture))):
        assert isinstance(answer, list)
        assert len(answer) == len(floor) == len(drawn)
        for face in answer:
            embedding = np.array(face["embedding"])
            assert max(floor @ embedding / np.linalg.norm(embedding)) > 0.99
            area = face["facial_area"]
            middle = area["x"] + area["w"] / 2, area["y"] + area["h"] / 2
            assert any(
                np.hypot(middle[0] - (f.box[0] + f.box[2]) / 2, middle[1] - (f.box[1] + f.box[3]) / 2) < 5
                for f in drawn
            )


def test_all_three_read_the_same_lines(services: list[Service], launcher: Launcher) -> None:
    page = jpeg(text_page(WORDS, (1600, 1200))[0])
    assert Floor(launcher.cache, CLIP, FACES, 1).ocr(page) == WORDS
    for answer in asked(services, photo_request("/ocr", page)):
        assert isinstance(answer, dict)
        assert answer["texts"] == WORDS


def test_a_service_says_how_long_it_took_to_start_and_which_processes_are_its_own(services: list[Service]) -> None:
    for service in services:
        assert 0 < service.start < 60
        assert measure.memory(service.pids()).resident > 20

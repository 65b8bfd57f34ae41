# SPDX-License-Identifier: AGPL-3.0-only
"""What only a container shows: signals, restarts, health, users, memory, and upstream's own route behind the key."""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from demo.pictures import colour_photo, group_photo, text_page
from image.container import BASE, CHANGED, ROOT, Container, Start, build, docker, until
from image.standin import build as build_standin
from photos import jpeg

LINES = ["First line of many", "Second line"]
PREDICT = {"clip": {"visual": {"modelName": "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"}}}
PRELOAD = "MACHINE_LEARNING_PRELOAD__OCR__DETECTION"
OPENED_BY_UPSTREAM = "attempt 1"  # as the stand-in logs it
HARDENED = ("--user=1000:1000", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@pytest.fixture(scope="module")
def page() -> bytes:
    return jpeg(text_page(LINES, (2400, 1800))[0])


def post(client: httpx.Client, route: str, photo: bytes) -> httpx.Response:
    return client.post(route, files={"file": photo})


def predict(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/predict", files={"image": photo}, data={"entries": json.dumps(PREDICT)})


def test_the_api_is_what_the_contract_says(image: str, cache: Path) -> None:
    command = [sys.executable, "-m", "scripts.contract", image, "--cache", str(cache), "-q"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(ended.stdout[-500:])
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_layers_that_we_add_are_small_and_nothing_was_run_in_them(image: str) -> None:
    ours, theirs = (
        docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", name).splitlines()
        for name in (image, BASE)
    )
    added = [line.split("\t") for line in ours[: len(ours) - len(theirs)]]
    assert 0 < sum(int(size) for size, _ in added) < 300_000
    assert not any("/bin/sh -c" in made and "#(nop)" not in made for _, made in added)
    assert "\nRUN" not in (ROOT / "Dockerfile").read_text()


def test_the_labels_say_what_it_is_and_what_it_stands_on(image: str) -> None:
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.version"] == (ROOT / "VERSION").read_text().strip()
    assert labels["org.opencontainers.image.base.name"] == BASE
    assert labels["org.opencontainers.image.licenses"] == "AGPL-3.0-only"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40


@pytest.mark.parametrize("options", [{}, {"IMMICH_HOST": "0.0.0.0"}, {"IMMICH_HOST": "nas"}])
def test_the_health_check_turns_healthy_wherever_it_listens(start: Start, options: dict[str, str]) -> None:
    with start("--hostname=nas", **options) as container:
        until(lambda: container.state["Health"]["Status"] == "healthy")


@pytest.mark.parametrize("options", [(), HARDENED])
def test_it_works_as_root_and_as_anybody_with_a_read_only_root(
    start: Start, page: bytes, options: tuple[str, ...]
) -> None:
    with start(*options) as container, container.client() as client:
        assert post(client, "/ocr", page).json()["result"]["texts"] == LINES
        assert len(post(client, "/clip/img", page).json()["result"]) == 512
        people = jpeg(group_photo((900, 700), [1, 2])[0])
        assert len(post(client, "/represent", people).json()["result"]) == 2
        assert len(client.post("/clip/txt", json={"text": "红色"}).json()["result"]) == 512


def test_docker_stop_lets_requests_in_flight_finish(start: Start, page: bytes) -> None:
    with start() as container, container.client() as client, ThreadPoolExecutor(5) as threads:
        post(client, "/ocr", page)
        answers = [threads.submit(post, client, "/ocr", page) for _ in range(4)]
        time.sleep(0.3)
        docker("stop", "--time=30", container.name)
        assert [answer.result().json()["result"]["texts"] for answer in answers] == [LINES] * 4
        assert container.state["ExitCode"] == 0


def test_restart_v2_brings_a_fresh_worker_after_what_is_in_flight(start: Start, page: bytes) -> None:
    with start() as container, container.client() as client, ThreadPoolExecutor(3) as threads:
        post(client, "/ocr", page)
        before = container.processes()
        answers = [threads.submit(post, client, "/ocr", page) for _ in range(3)]
        time.sleep(0.3)
        assert client.post("/restart_v2").json() == {"result": "pass"}
        assert [answer.result().json()["result"]["texts"] for answer in answers] == [LINES] * 3
        until(lambda: container.processes() - before != set() and _works(container, page))
        assert len(before - container.processes()) == 1  # the worker; tini and gunicorn stay


def _works(container: Container, page: bytes) -> bool:
    try:
        with container.client() as client:
            return post(client, "/ocr", page).status_code == 200
    except httpx.TransportError:
        return False


def test_memory_comes_back_after_the_idle_time_and_not_while_there_is_work(start: Start, page: bytes) -> None:
    idle = {"MACHINE_LEARNING_MODEL_TTL": "3", "MACHINE_LEARNING_MODEL_TTL_POLL_S": "1"}
    with start(**idle) as container, container.client() as client:
        before = container.processes()
        for _ in range(6):
            assert post(client, "/ocr", page).status_code == 200
            time.sleep(1)
        assert container.processes() == before
        used = _memory_mb(container)
        until(lambda: container.processes() - before != set())
        until(lambda: _memory_mb(container) < used - 100)


def _memory_mb(container: Container) -> float:
    """Anonymous memory of all processes in it."""
    total = 0.0
    for pid in container.processes():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        total += sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))
    return total


def test_upstreams_route_is_behind_the_key_and_shares_the_model(start: Start) -> None:
    photo = jpeg(colour_photo("red", (640, 480)))
    with start() as container:
        with container.client(key=None) as stranger:
            assert predict(stranger, photo).status_code == 401
        with container.client() as client:
            ours = [float(number) for number in post(client, "/clip/img", photo).json()["result"]]
            theirs = json.loads(predict(client, photo).json()["clip"])
        assert sum(a * b for a, b in zip(ours, theirs, strict=True)) > 0.9999
        assert container.log.count("Opening") == 1  # upstream says so for each session


@pytest.mark.parametrize(("mode", "status"), [("open", 200), ("off", 404)])
def test_upstreams_route_can_be_opened_or_removed(start: Start, mode: str, status: int) -> None:
    with start(IMMICH_API=mode) as container, container.client(key=None if mode == "open" else "") as client:
        if mode == "off":
            client.headers["api-key"] = "the key of the tests"
        assert predict(client, jpeg(colour_photo("red", (640, 480)))).status_code == status


def test_a_header_without_end_is_refused(start: Start) -> None:
    with start() as container:
        host, port = container.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000)
            assert connection.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("OCR_MIN_SCORE", "abc", "mt-photos-ml: OCR_MIN_SCORE=abc: expected"),
        ("API_AUTH_KEY", "", 'mt-photos-ml: API_AUTH_KEY="": expected a key'),
        ("IMMICH_PORT", "99999", "mt-photos-ml: IMMICH_PORT=99999: expected"),
        ("MACHINE_LEARNING_WORKERS", "0", "mt-photos-ml: MACHINE_LEARNING_WORKERS=0: expected"),
        ("MACHINE_LEARNING_MODEL_TTL", "x", "mt-photos-ml: MACHINE_LEARNING_MODEL_TTL=x: expected"),
        (
            "MACHINE_LEARNING_PRELOAD__OCR__DETECTION",
            "foo",
            "mt-photos-ml: MACHINE_LEARNING_PRELOAD__OCR__DETECTION=foo",
        ),
        ("MACHINE_LEARNING_MODEL_TTL_POLL_S", "x", "mt-photos-ml: a MACHINE_LEARNING_ variable can't be used"),
    ],
)
def test_a_wrong_setting_stops_the_container_with_one_line(start: Start, name: str, value: str, line: str) -> None:
    with start(waits=False, **{name: value}) as container:
        until(lambda: not container.state["Running"])
        (said,) = container.log.splitlines()
        assert said.startswith(line)


def test_an_empty_setting_counts_as_unset(start: Start) -> None:
    empty = {"MACHINE_LEARNING_MODEL_TTL": "", "IMMICH_PORT": "", "HF_ENDPOINT": "", "MACHINE_LEARNING_WORKERS": ""}
    with start(**empty) as container, container.client() as client:
        assert client.post("/check").json()["result"] == "pass"


def test_the_start_says_what_a_person_needs_to_know(start: Start) -> None:
    with start() as container:
        assert "vectors of 512 numbers" in container.log


@pytest.mark.parametrize("name", [PRELOAD, PRELOAD.lower()])
def test_what_is_in_use_is_preloaded_by_us_and_not_by_upstream_as_well(start: Start, cache: Path, name: str) -> None:
    with start(**{name: "PP-OCRv5_mobile"}) as container, container.client() as client:
        until(lambda: client.post("/check").json()["loaded"] == ["ocr/PP-OCRv5_mobile/detection"])
        assert OPENED_BY_UPSTREAM not in container.log
    assert list(cache.glob("ocr/PP-OCRv5_mobile/detection/prepared/*/weights.bin"))


def test_where_immich_uses_it_too_upstream_preloads_what_it_is_told(start: Start) -> None:
    with start(**{PRELOAD: "PP-OCRv5_mobile", "IMMICH_API": "open"}) as container:
        until(lambda: OPENED_BY_UPSTREAM in container.log)


def test_restart_gives_the_memory_back(start: Start, page: bytes) -> None:
    with start() as container, container.client() as client:
        post(client, "/ocr", page)
        used = _memory_mb(container)
        assert client.post("/restart").json() == {"result": "pass"}
        until(lambda: _memory_mb(container) < used - 100)
        until(lambda: _works(container, page))


def test_an_upstream_without_a_name_that_we_use_stops_the_container_with_one_line(start: Start) -> None:
    build_standin(CHANGED, changed=True)
    build(CHANGED, "mt-photos-ml-test:changed")
    with start(image="mt-photos-ml-test:changed", waits=False) as container:
        until(lambda: not container.state["Running"])
        assert "upstream has no immich_ml.upstream_main.load any more" in container.log
        assert "v2.5.6" in container.log
        assert "Traceback" not in container.log

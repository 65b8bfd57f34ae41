# SPDX-License-Identifier: AGPL-3.0-only
"""Disks, networks and processes fail during requests: the service recovers or answers a clear 503, never wrongly."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.models import build_clip
from demo.pictures import colour_photo, text_page
from hub_server import HubServer
from photos import encoded, jpeg
from service import Service, environment, post, run_command, running, unload, until
from trust.tally import count
from trust.traffic import Request, answered, mixed, running_traffic, same

OCR = Path("ocr", "PP-OCRv6_small")
RED = jpeg(colour_photo("red", (320, 240)))
NAME = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Each test may damage its own cache."""
    return build(tmp_path / "cache")


def answers(service: Service, route: str, each: int = 1) -> list[Request]:
    """Requests for the route, with the answers that they get now to compare with later."""
    return answered(service.url, [request for request in mixed(each=each) if request.route == route])


def is_whole(cache: Path) -> bool:
    """Whether `models verify` accepts every model file in use."""
    return run_command(demo_environment(cache), "models", "verify").returncode == 0


def forget(service: Service) -> None:
    """Drops idle models, as after an idle minute, and reloads models in use whose files were replaced."""
    with service.client() as client:
        unload(client)
        assert client.post("/restart").status_code == 200


def recovers(service: Service, requests: list[Request]) -> None:
    """Asserts that within a minute, without help, every request gets its former answer again."""
    with running_traffic(service.url, requests, clients=1) as seen:
        until(lambda: seen.streak >= len(requests))
    seen.check()


HARMS: dict[str, Callable[[Path], object]] = {
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "an error page": lambda path: path.write_bytes(b"<html>404</html>"),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_model_file_is_fetched_again(service: Service, cache: Path, harm: str) -> None:
    """The text models come from RapidOCR's wheel."""
    asked = answers(service, "/ocr", each=2)
    with running_traffic(service.url, asked, clients=3) as seen:
        for kind in ("detection", "recognition"):
            HARMS[harm](cache / OCR / kind / "model.onnx")
            count("faults injected")
            time.sleep(0.3)
            forget(service)
            time.sleep(0.3)
    seen.check()
    recovers(service, asked)
    until(lambda: is_whole(cache))


@pytest.mark.parametrize(
    ("one", "other", "route"),
    [
        ("clip/demo-colours/visual", "clip/demo-colours/textual", "/clip/img"),
        ("facial-recognition/demo-faces/detection", "facial-recognition/demo-faces/recognition", "/represent"),
        ("ocr/PP-OCRv6_small/detection", "ocr/PP-OCRv6_small/recognition", "/ocr"),
    ],
)
def test_swapped_model_files_are_named_in_a_503_or_fetched_again(
    service: Service, cache: Path, one: str, other: str, route: str
) -> None:
    asked = answers(service, route)
    paths = cache / one / "model.onnx", cache / other / "model.onnx"
    for path, content in zip(paths, [path.read_bytes() for path in reversed(paths)], strict=True):
        path.write_bytes(content)
    count("faults injected")
    forget(service)
    answer = post(service, route, RED)
    if route != "/ocr":
        assert answer.status_code == 503
        assert all(word in answer.json()["msg"] for word in (one, "delete"))
        assert "another kind of model" in service.log.read_text()
        build(cache)
    recovers(service, asked)


def prepared(cache: Path) -> list[Path]:
    return list(cache.rglob("prepared/[!.]*/weights.bin"))


@pytest.fixture
def mapped(cache: Path, tmp_path: Path) -> Iterator[Service]:
    """A service that has loaded the prepared text models, which only the processor uses."""
    with running(tmp_path, {**demo_environment(cache), "OCR_DEVICE": "cpu"}) as service:
        answers(service, "/ocr")
        until(lambda: len(prepared(cache)) == 2 and service.log.read_text().count("loaded ocr") == 4, 120)
        yield service


def test_if_a_mapped_model_disappears_the_process_restarts_and_maps_none(mapped: Service, cache: Path) -> None:
    """As on a network share that disconnects: reading the mapping raises SIGBUS."""
    asked, first = answers(mapped, "/ocr", each=2), mapped.pid
    with running_traffic(mapped.url, asked, clients=3, cut=3) as seen:
        time.sleep(0.3)
        for weights in prepared(cache):
            os.truncate(weights, 4096)
        count("faults injected", 2)
        until(lambda: mapped.pid not in (0, first))
        recovers(mapped, asked)
    seen.check()
    log = mapped.log.read_text()
    assert "Bus error" in log
    assert "from now on models are read into memory" in log
    assert "weights.bin" not in Path(f"/proc/{mapped.pid}/maps").read_text()


def test_a_damaged_prepared_model_is_not_used(mapped: Service, cache: Path) -> None:
    asked = answers(mapped, "/ocr")
    forget(mapped)
    for weights in prepared(cache):
        size = weights.stat().st_size
        weights.unlink()  # the mapped file itself stays whole
        weights.write_bytes(bytes(size))
        count("faults injected")
    assert same(answered(mapped.url, asked), asked)
    assert "deleted the damaged prepared model" in mapped.log.read_text()


@contextlib.contextmanager
def on_a_disk_of(size: str, cache: Path) -> Iterator[tuple[Service, Callable[[str], None]]]:
    """A service whose cache is on a small disk of its own, and a function that remounts the disk with other options."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", cache], check=True, capture_output=True)

    try:
        mount(f"size={size}")
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("no disk can be mounted here: not root, or in a container")
    try:
        build(cache)
        with running(cache.parent, demo_environment(cache)) as service:
            yield service, mount
    finally:
        subprocess.run(["umount", "-l", cache], check=True)


@pytest.mark.parametrize("size", ["60m", "22m"], ids=["no room for prepared models", "no room for the models"])
def test_a_full_disk_changes_no_answer_and_leaves_no_empty_file(cache: Path, size: str) -> None:
    with on_a_disk_of(size, cache) as (service, _):
        filler = cache / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(100_000_000))
        count("faults injected")
        asked = answered(service.url, mixed(each=1))  # the text models are loaded from the wheel
        filler.unlink()
        forget(service)
        assert same(answered(service.url, asked), asked)
        assert not [path for path in cache.rglob("*.onnx") if path.stat().st_size == 0]


def test_the_service_survives_a_cache_that_becomes_read_only_or_disappears(cache: Path) -> None:
    with on_a_disk_of("300m", cache) as (service, mount):
        asked = answered(service.url, mixed(each=1))
        with running_traffic(service.url, asked, clients=3) as seen:
            mount("remount,ro")
            forget(service)
            count("faults injected")
            time.sleep(1)
        seen.check()
        assert same(answered(service.url, asked), asked)
        mount("remount,rw")
        away = cache / "away"
        away.mkdir()
        for folder in ("clip", "facial-recognition", "ocr"):
            (cache / folder).rename(away / folder)
        count("faults injected")
        forget(service)
        for route in ("/clip/img", "/represent"):
            answer = post(service, route, RED)
            assert answer.status_code == 503
            assert "demo-" in answer.json()["msg"]
        for kept in away.iterdir():
            shutil.rmtree(cache / kept.name, ignore_errors=True)
            kept.rename(cache / kept.name)
        recovers(service, asked)


FAULTS: dict[str, dict[str, object]] = {
    "answers 500": {"status": 500},
    "sends other bytes": {"spoiled": True},
    "breaks off": {"after": 5000, "cuts": 99},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_is_named_in_a_503_and_retried_later(tmp_path: Path, fault: str) -> None:
    made, cache = tmp_path / "made", tmp_path / "cache"
    build_clip(made)
    files = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with HubServer() as hub:
        hub.repositories[f"immich-app/{NAME}"] = files
        vars(hub).update(FAULTS[fault])
        count("faults injected")
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(cache), "HF_ENDPOINT": hub.endpoint}
        with running(tmp_path, settings) as service:
            answer = post(service, "/clip/img", RED)
            assert (answer.status_code, answer.json()["result"]) == (503, [])
            assert 0 < int(answer.headers["retry-after"]) <= 30
            assert hub.endpoint in answer.json()["msg"]
            assert not list(cache.rglob("clip/*/visual/model.onnx")), "half a file looks whole"
            hub.status, hub.spoiled, hub.cuts = 0, False, 0
            until(lambda: post(service, "/clip/img", RED).status_code == 200, 60)
    whole = {str(path.relative_to(cache / "clip" / NAME)): path for path in (cache / "clip" / NAME).rglob("*.onnx")}
    assert all(path.read_bytes() == files[name] for name, path in whole.items())
    assert "visual/model.onnx" in whole


def test_without_enough_memory_a_photo_is_503_and_the_next_one_is_answered(cache: Path, tmp_path: Path) -> None:
    """The address space suffices to start and for a small photo, not for a large one. OCR runs on the processor,
    because a device needs more memory to plan, and would leave that free for the photo."""
    small = jpeg(text_page(["One"], (320, 120))[0])
    large = encoded(text_page(["Many"], (3200, 2400))[0].resize((9000, 9000)), "PNG")
    settings = {"PREPARE_MODELS": "false", "MACHINE_LEARNING_REQUEST_THREADS": "1", "OCR_DEVICE": "cpu"}
    with running(tmp_path, {**demo_environment(cache), **settings}) as service:
        post(service, "/ocr", small)
        lines = Path(f"/proc/{service.pid}/status").read_text().splitlines()
        size = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
        subprocess.run(["prlimit", f"--pid={service.pid}", f"--as={size + 100_000_000}"], check=True)
        count("faults injected")
        answer = post(service, "/ocr", large)
        assert answer.status_code == 503
        assert "memory" in answer.json()["msg"]
        assert int(answer.headers["retry-after"]) > 0
        assert post(service, "/ocr", small).json()["result"]["texts"] == ["One"]


SHIFTED = """
import pathlib, time
real, shift = time.time, pathlib.Path(__file__).with_name("shift")
time.time = lambda: real() + float(shift.read_text() or 0)
"""


def test_a_clock_that_jumps_stops_nothing(cache: Path, tmp_path: Path) -> None:
    """Shifts time.time(). libfaketime can't be used: time.sleep fails under it (EINVAL)."""
    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED)
    (clock := folder / "shift").write_text("0")
    settings = {**demo_environment(cache), "MACHINE_LEARNING_MODEL_TTL": "2"}
    settings["PYTHONPATH"] = f"{environment({})['PYTHONPATH']}{os.pathsep}{folder}"
    with running(tmp_path, settings) as service:
        asked = answered(service.url, mixed(each=1))
        with running_traffic(service.url, asked, clients=3) as seen:
            for days in (-2, 400, -3650):
                clock.write_text(str(days * 86_400))
                count("faults injected")
                time.sleep(1)
        seen.check()
        until(lambda: "unloaded" in service.log.read_text())
        assert same(answered(service.url, asked), asked)
        assert len(set(re.findall(r"^\d{4}", service.log.read_text(), re.M))) > 1, "the clock was set"


def test_two_services_can_share_a_cache(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with running(tmp_path, demo_environment(cache)) as one, running(tmp_path / "two", demo_environment(cache)) as two:
        asked = answered(one.url, mixed(each=2))
        with running_traffic(one.url, asked, clients=2) as a, running_traffic(two.url, asked, clients=2) as b:
            for service in (one, two, one, two):
                forget(service)
                time.sleep(0.5)
        a.check()
        b.check()
        os.kill(one.pid, signal.SIGKILL)
        count("faults injected")
        assert same(answered(two.url, asked), asked)
    assert is_whole(cache)

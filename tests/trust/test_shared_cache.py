# SPDX-License-Identifier: AGPL-3.0-only
"""Several services share a cache, like replicas in a cluster: one works on a file while the others wait."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.models import build_clip
from demo.pictures import colour_photo
from hub_server import HubServer
from mt_photos_ml.settings import DEFAULT_CLIP
from photos import jpeg
from service import Service, post, running, until
from trust.tally import count
from trust.traffic import answered, mixed

RED = jpeg(colour_photo("red", (320, 240)))
WEIGHTS = "visual/model.onnx"
ON_PROCESSOR = dict.fromkeys(("OCR_DEVICE", "CLIP_DEVICE", "FACE_DEVICE"), "cpu")  # which prepared models are for


@contextlib.contextmanager
def replicas(folder: Path, settings: Mapping[str, str]) -> Iterator[list[Service]]:
    """Runs three services with these settings."""
    with contextlib.ExitStack() as stack:
        logs = [folder / str(i) for i in range(3)]
        for log in logs:
            log.mkdir()
        yield [stack.enter_context(running(log, settings)) for log in logs]


def test_if_the_downloading_service_is_killed_another_resumes_the_download(tmp_path: Path) -> None:
    made, cache = tmp_path / "made", tmp_path / "cache"
    build_clip(made)
    files = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with HubServer() as hub:
        hub.repositories[f"immich-app/{DEFAULT_CLIP}"] = files
        hub.stalls, hub.after = 1, len(files[WEIGHTS]) // 2
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(cache), "HF_ENDPOINT": hub.endpoint}
        with replicas(tmp_path, settings) as (first, *others):
            pull(first)
            until(lambda: WEIGHTS in hub.sent)
            for other in others:
                pull(other)
            until(lambda: waiting(cache / "clip" / DEFAULT_CLIP / ".lock") == 2)
            os.kill(first.pid, signal.SIGKILL)
            first.process.kill()
            count("faults injected")
            for other in others:
                until(partial(has_vectors, other))
    assert hub.sent.count(WEIGHTS) == 2
    assert f"bytes={hub.after}-" in hub.ranges, "the bytes of the first download are kept"
    assert (cache / "clip" / DEFAULT_CLIP / WEIGHTS).read_bytes() == files[WEIGHTS]


def pull(service: Service) -> None:
    """Makes the service download the model."""
    with service.client() as client:
        assert client.post("/api/models/clip/visual/pull").status_code == 200


def waiting(lock: Path) -> int:
    """How many processes wait for the lock on this file."""
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and f":{lock.stat().st_ino} " in line for line in lines)


def has_vectors(service: Service) -> bool:
    return post(service, "/clip/img", RED).status_code == 200


def test_if_the_process_that_prepares_a_model_is_killed_another_prepares_it(tmp_path: Path) -> None:
    build(tmp_path / "cache")
    folder = tmp_path / "cache" / "ocr" / "PP-OCRv6_small" / "recognition" / "prepared"
    folder.mkdir(parents=True)
    holder = subprocess.Popen(["flock", folder / ".lock", "sleep", "600"], start_new_session=True)
    try:
        with replicas(tmp_path, {**demo_environment(tmp_path / "cache"), **ON_PROCESSOR}) as services:
            asked = answered(services[0].url, mixed(each=1))
            assert all(answered(service.url, asked) == asked for service in services), "no request waits for the lock"
            until(lambda: "prepared ocr/PP-OCRv6_small/detection" in log(services))
            assert not list(folder.glob("*/record.json"))
            os.killpg(holder.pid, signal.SIGKILL)
            count("faults injected")
            until(lambda: len(list(folder.glob("*/record.json"))) == 1)
            assert all(answered(service.url, asked) == asked for service in services)
        assert log(services).count("prepared ocr/PP-OCRv6_small/recognition") == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


def log(services: list[Service]) -> str:
    return "".join(service.log.read_text() for service in services)

# SPDX-License-Identifier: AGPL-3.0-only
"""The sections about memory, and how long models take to load."""

import re
import shutil
import time
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from bench import measure
from bench.load import photo_request, send
from bench.measure import Memory
from bench.models import NAME
from bench.photos import JPEG_48, PAGE_1440
from bench.run import ALL, OCR, SERVICES, Bench
from bench.service import OCR_MODELS, Service


def memory(bench: Bench) -> None:
    """Memory, idle, with models and under load; and how long models take to load, prepared or not."""
    cache = bench.launcher.cache
    files = [*cache.glob(f"*/{NAME}/*/model.onnx"), *OCR_MODELS.values()]
    disk = sum(path.stat().st_size for path in files) / 1e6
    first: dict[str, str] = {}
    if bench.quick:
        assert bench.ours, "it has prepared them"
    else:
        for prepared in cache.glob("*/*/*/prepared"):
            shutil.rmtree(prepared, ignore_errors=True)
        with bench.launcher.run("ours") as service:
            send(service.port, bench.steps.values())
            first = _loads(service)
            bench.wait_until_prepared()
    later: dict[str, str] = {}
    seen: dict[str, dict[str, Memory]] = {}
    for who in SERVICES[: bench.rounds(2, 1)]:
        with bench.launcher.run(who) as service:
            seen[who] = _memory_of(bench, service)
            later |= _loads(service)  # the straightforward one logs none
    bench.record(
        "Memory",
        "Megabytes of all processes of the service, after each step: anonymous (RssAnon, what can't be dropped) and "
        f"resident (RSS, with mapped files). The models are {disk:.0f} MB on disk.",
        "|".join(("after", *(f"{who}, {kind}" for who in seen for kind in Memory._fields))),
        [[step, *(f"{value:.0f}" for each in seen.values() for value in each[step])] for step in seen["ours"]],
    )
    note = "Seconds: as it is, the first time, and prepared, in any later process."
    rows = [[part, first.get(part, ""), seconds] for part, seconds in later.items()]
    bench.record("Loading a model", note, "model|first|later", rows)
    bench.figures["idle"] = seen["ours"]["start"].resident
    bench.figures["anonymous/disk"] = seen["ours"]["+ OCR"].anonymous / disk
    bench.figures["slowest load"] = max(map(float, later.values()))


def _memory_of(bench: Bench, service: Service) -> dict[str, Memory]:
    """At the start, after each of the steps, and the most during eight large photos at once."""
    seen = {"start": measure.memory(service.pids())}
    for step, request in bench.steps.items():
        send(service.port, [request])
        time.sleep(0.2)
        seen[f"+ {step}"] = measure.memory(service.pids())
    large = [photo_request(route, bench.photos[JPEG_48]) for route in ALL] * 3
    with measure.peak(service.pids()) as most:
        send(service.port, large[:8], 8)
    return {**seen, "most during eight of 48 MP": most[-1]}


def _loads(service: Service) -> dict[str, str]:
    """Seconds that each model took to load, by the log."""
    return dict(re.findall(r"loaded (\S+) in ([\d.]+) s", service.log()))


def ocr_memory(bench: Bench) -> None:
    """Whether the memory of OCR grows with every new shape of a photo."""
    requests = [photo_request(OCR, photo) for photo in _pages(bench.photos[PAGE_1440], 200)]
    with bench.launcher.run("ours") as service:
        send(service.port, requests[:100], 2)
        before = measure.memory(service.pids())
        send(service.port, (requests * 5)[100:], 2)
        after = measure.memory(service.pids())
    rows = [[photos, *(f"{value:.0f}" for value in seen)] for photos, seen in ((100, before), (1000, after))]
    note = "Megabytes after so many photos of 200 different sizes, two at a time."
    bench.record("Memory of OCR over time", note, "photos|anonymous|resident", rows)
    bench.figures["ocr memory"] = after.anonymous / before.anonymous


def _pages(page: bytes, number: int) -> Iterator[bytes]:
    """Parts of the page of so many different sizes and shapes."""
    whole, random = Image.open(BytesIO(page)), np.random.default_rng(0)
    for _ in range(number):
        width, height = (int(random.integers(edge // 4, edge)) for edge in whole.size)
        left, top = int(random.integers(whole.width - width)), int(random.integers(whole.height - height))
        file = BytesIO()
        whole.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=85)
        yield file.getvalue()

# SPDX-License-Identifier: AGPL-3.0-only
"""More clients than the service can answer: no client gets another's answer, and memory stays bounded."""

import time
from pathlib import Path

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, text_page
from photos import jpeg
from service import Service, anonymous_mb, is_planned, running, until
from trust.traffic import Request, answered, form, mixed, running_traffic

FREED_SECONDS = 14  # the service frees memory within ten seconds of the last request; a loaded machine takes longer


def memory_during(service: Service, seconds: float) -> list[float]:
    """Samples the serving process for so many seconds; returns its anonymous memory, in MB."""
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append(anonymous_mb(service.pid))
        time.sleep(0.1)
    return samples


def test_sixty_four_clients_get_their_own_answers_or_503(service: Service, long: bool) -> None:
    asked = answered(service.url, mixed(each=8))
    with running_traffic(service.url, asked, clients=64) as seen:
        most = max(memory_during(service, 600 if long else 10))
    seen.check()
    assert most < 1000
    assert answered(service.url, asked)  # all of them, once the load is over


def test_memory_stays_bounded_with_sixteen_clients_and_48_megapixels(service: Service, long: bool) -> None:
    size = (8000, 6000)
    photos = [("/clip/img", colour_photo("red", size)), ("/clip/img", colour_photo("blue", size))]
    photos.append(("/ocr", text_page(["Number 48"], (3200, 1200))[0].resize(size)))
    asked = answered(service.url, [Request(route, *form(jpeg(photo, 80))) for route, photo in photos])
    with running_traffic(service.url, asked, clients=16) as seen:
        most = max(memory_during(service, 300 if long else 8))
    seen.check()
    assert most < 1500
    assert answered(service.url, asked)


def test_memory_open_files_and_threads_do_not_grow_over_hours(cache: Path, tmp_path: Path, long: bool) -> None:
    pieces = 12 if long else 4
    memory, files, threads = [], [], []
    # on a device, models must stay until all shapes are planned, which may take longer than an idle model is kept
    with running(tmp_path, {**demo_environment(cache), "MACHINE_LEARNING_MODEL_TTL": "0"}) as service:
        asked = answered(service.url, mixed(each=4))
        until(lambda: is_planned(service), 300)
        for _ in range(pieces):
            with running_traffic(service.url, asked, clients=8) as seen:
                time.sleep(120 if long else 5)
            seen.check()
            memory.append(min(memory_during(service, FREED_SECONDS)))
            here = Path(f"/proc/{service.pid}")
            files.append(len(list((here / "fd").iterdir())))
            threads.append(len(list((here / "task").iterdir())))
    print(f"memory {memory}, files {files}, threads {threads}")
    assert max(memory[pieces // 2 :]) <= max(memory[: pieces // 2]) * 1.05 + 5
    assert max(files) - min(files) <= 2
    assert max(threads) - threads[0] <= 6  # asyncio's own pool grows to its limit

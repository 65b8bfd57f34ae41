# SPDX-License-Identifier: AGPL-3.0-only
"""More clients than the service can answer: nobody gets another's answer, and memory is bounded by the settings."""

import time
from pathlib import Path

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, text_page
from photos import jpeg
from service import Service, anonymous_mb, is_planned, running, until
from trust.traffic import Request, answered, form, mixed, running_traffic


def highest_memory(service: Service, seconds: float) -> float:
    """The most anonymous memory that the serving process has in so many seconds, in MB."""
    most, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, anonymous_mb(service.pid))
        time.sleep(0.1)
    return most


def test_sixty_four_clients_get_their_own_answers_or_503(service: Service, long: bool) -> None:
    asked = answered(service.url, mixed(each=8))
    with running_traffic(service.url, asked, clients=64) as seen:
        most = highest_memory(service, 600 if long else 10)
    seen.check()
    assert most < 1000
    assert answered(service.url, asked)  # all of them, once the load has fallen


def test_sixteen_clients_with_48_megapixels_stay_within_the_memory(service: Service, long: bool) -> None:
    size = (8000, 6000)
    photos = [("/clip/img", colour_photo("red", size)), ("/clip/img", colour_photo("blue", size))]
    photos.append(("/ocr", text_page(["Number 48"], (3200, 1200))[0].resize(size)))
    asked = answered(service.url, [Request(route, *form(jpeg(photo, 80))) for route, photo in photos])
    with running_traffic(service.url, asked, clients=16) as seen:
        most = highest_memory(service, 300 if long else 8)
    seen.check()
    assert most < 1500
    assert answered(service.url, asked)


def test_after_hours_of_photos_memory_files_and_threads_are_what_they_were(
    cache: Path, tmp_path: Path, long: bool
) -> None:
    pieces = 12 if long else 4
    memory, files, threads = [], [], []
    # on a device it begins once all is planned, which may take longer than an idle model stays
    with running(tmp_path, {**demo_environment(cache), "MACHINE_LEARNING_MODEL_TTL": "0"}) as service:
        asked = answered(service.url, mixed(each=4))
        until(lambda: is_planned(service), 300)
        for _ in range(pieces):
            with running_traffic(service.url, asked, clients=8) as seen:
                time.sleep(120 if long else 5)
            seen.check()
            time.sleep(6)  # for the pause in which it gives back what is free
            here = Path(f"/proc/{service.pid}")
            memory.append(anonymous_mb(service.pid))
            files.append(len(list((here / "fd").iterdir())))
            threads.append(len(list((here / "task").iterdir())))
    print(f"memory {memory}, files {files}, threads {threads}")
    assert max(memory[pieces // 2 :]) <= max(memory[: pieces // 2]) * 1.05 + 5
    assert max(files) - min(files) <= 2
    assert max(threads) - threads[0] <= 6  # asyncio's own pool grows to what it may have

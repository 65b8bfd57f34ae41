# SPDX-License-Identifier: AGPL-3.0-only
"""More clients than the service can answer: nobody gets another's answer, and memory is bounded by the settings."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from demo.pictures import colour_photo, text_page
from photos import jpeg
from service import Service, anonymous_mb
from trust.traffic import Request, Traffic, answered, form, mixed, running_traffic


@contextmanager
def highest_memory(service: Service) -> Iterator[list[float]]:
    """The most anonymous memory that the serving process had, in MB."""
    most, end = [0.0], Event()

    def watch() -> None:
        while not end.wait(0.1):
            most[0] = max(most[0], anonymous_mb(service.pid))

    watching = Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        end.set()
        watching.join()


def check(seen: Traffic) -> None:
    assert (seen.lost, seen.wrong) == ([], [])
    assert set(seen.statuses) <= {200, 503}
    assert seen.right > 0


def test_sixty_four_clients_get_their_own_answers_or_503(service: Service, long: bool) -> None:
    asked = answered(service.url, mixed(each=8))
    with highest_memory(service) as most, running_traffic(service.url, asked, clients=64) as seen:
        time.sleep(600 if long else 10)
    check(seen)
    assert most[0] < 1000
    assert answered(service.url, asked)  # all of them, once the load has fallen


def test_sixteen_clients_with_48_megapixels_stay_within_the_memory(service: Service, long: bool) -> None:
    size = (8000, 6000)
    photos = [("/clip/img", colour_photo("red", size)), ("/clip/img", colour_photo("blue", size))]
    photos.append(("/ocr", text_page(["Number 48"], (3200, 1200))[0].resize(size)))
    asked = answered(service.url, [Request(route, *form(jpeg(photo, 80))) for route, photo in photos])
    with highest_memory(service) as most, running_traffic(service.url, asked, clients=16) as seen:
        time.sleep(300 if long else 8)
    check(seen)
    assert most[0] < 1500
    assert answered(service.url, asked)


def test_after_hours_of_photos_memory_files_and_threads_are_what_they_were(service: Service, long: bool) -> None:
    asked = answered(service.url, mixed(each=4))
    pieces = 12 if long else 4
    memory, files, threads = [], [], []
    for _ in range(pieces):
        with running_traffic(service.url, asked, clients=8) as seen:
            time.sleep(120 if long else 5)
        check(seen)
        time.sleep(6)  # for the pause in which it gives back what is free
        here = Path(f"/proc/{service.pid}")
        memory.append(anonymous_mb(service.pid))
        files.append(len(list((here / "fd").iterdir())))
        threads.append(len(list((here / "task").iterdir())))
    print(f"memory {memory}, files {files}, threads {threads}")
    assert max(memory[pieces // 2 :]) <= max(memory[: pieces // 2]) * 1.05 + 5
    assert max(files) - min(files) <= 2
    assert max(threads) - threads[0] <= 6  # asyncio's own pool grows to what it may have

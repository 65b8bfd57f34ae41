# SPDX-License-Identifier: AGPL-3.0-only
"""The service stops and restarts under load and loses no request."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.__main__ import environment as demo_environment
from demo.pictures import text_page
from mt_photos_ml.api.middleware import lifecycle
from photos import jpeg
from service import Service, post, running, until
from trust.raw import stalled
from trust.tally import count
from trust.traffic import answered, mixed, running_traffic


def wait_for_another(service: Service, pid: int) -> None:
    until(lambda: service.pid not in (0, pid))


def test_restarts_under_load_break_no_connection_and_lose_no_request(service: Service, long: bool) -> None:
    asked = answered(service.url, mixed(each=2))
    with running_traffic(service.url, asked) as seen, service.client() as client:
        for _ in range(200 if long else 20):
            before = service.pid
            assert client.post("/restart_v2").json() == {"result": "pass"}
            wait_for_another(service, before)
            count("restarts")
    seen.check()
    assert seen.right == seen.sent > 100
    print(f"slowest: {seen.slowest:.1f} s")


def test_after_sigterm_it_answers_requests_in_flight_rejects_new_ones_and_exits_with_0(
    cache: Path, tmp_path: Path
) -> None:
    page = jpeg(text_page(["First line of many", "Second line"], (2400, 1800))[0])
    settings = {**demo_environment(cache), "MACHINE_LEARNING_REQUEST_THREADS": "1"}
    with running(tmp_path, settings) as service, ThreadPoolExecutor(8) as threads, service.client() as client:
        post(service, "/ocr", page)
        answers = [threads.submit(post, service, "/ocr", page) for _ in range(8)]
        time.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        late = client.post("/ocr", files={"file": page})
        assert (late.status_code, late.json()["msg"]) == (503, "the service is stopping")
        assert (late.headers["retry-after"], late.headers["connection"]) == ("10", "close")
        assert [answer.result().status_code for answer in answers] == [200] * 8
        assert service.process.wait(30) == 0
    count("requests sent", 10)
    count("requests answered", 9)
    count("requests answered 503 with Retry-After")


def test_a_stalled_upload_does_not_keep_the_service_from_stopping(service: Service) -> None:
    with stalled(service.url):
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(lifecycle.FINISH_SECONDS + 20) == 0


def test_a_second_ctrl_c_stops_the_service_at_once(service: Service) -> None:
    service.process.send_signal(signal.SIGINT)
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(20) == 0


def test_a_killed_worker_is_restarted(service: Service) -> None:
    asked = answered(service.url, mixed(each=1))
    with running_traffic(service.url, asked, clients=4, cut=12) as seen:
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS):
            killed = service.pid
            os.kill(killed, number)
            count("faults injected")
            wait_for_another(service, killed)
            assert answered(service.url, asked)  # waits in the queue of the socket, which stays open
            assert number.name in service.log.read_text()
            assert "is started again" in service.log.read_text()
            assert "no memory was left" in service.log.read_text()  # SIGKILL is what the kernel sends then
    seen.check()


def test_the_worker_ends_when_its_parent_is_killed(service: Service) -> None:
    pid = service.pid
    service.process.kill()
    until(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
    count("faults injected")

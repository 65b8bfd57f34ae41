# SPDX-License-Identifier: AGPL-3.0-only
"""The container on an open port, under faults and restarts."""

import contextlib
import json
import os
import re
import subprocess
from functools import partial
from pathlib import Path

import httpx
import pytest

from demo.pictures import text_page
from image.container import HARDENED, Container, Start, docker
from photos import jpeg
from service import KEY, answers, until
from trust.silence import outlast
from trust.tally import count
from trust.traffic import answered, mixed, running_traffic, same

RESTARTS = int(os.environ.get("RESTARTS", "10"))


def fresh(container: Container, than: set[str]) -> bool:
    """Whether a new worker answers."""
    return not container.processes() <= than and answers(f"{container.url}/ping")


@pytest.mark.long
def test_restarts_under_load_break_no_connection_and_lose_no_request(start: Start) -> None:
    with start() as container, container.client() as client:
        asked = answered(container.url, mixed(each=2))
        with running_traffic(container.url, asked) as seen:
            for _ in range(RESTARTS):
                before = container.processes()
                assert client.post("/restart_v2").json() == {"result": "pass"}
                until(partial(fresh, container, before))
                count("restarts")
        print(f"slowest: {seen.slowest:.1f} s, {seen.sent} requests")
    assert (seen.lost, seen.wrong) == ([], [])
    assert seen.right == seen.sent > RESTARTS


def test_a_worker_that_is_killed_is_replaced(start: Start) -> None:
    with start() as container:
        asked = answered(container.url, mixed(each=1))
        before = container.processes()
        worker = max(before, key=int)
        os.kill(int(worker), 9)
        until(partial(fresh, container, before))
        assert same(answered(container.url, asked), asked)


def test_a_thousand_silent_connections_keep_nobody_out_and_do_not_fill_the_log(start: Start) -> None:
    with start("--ulimit=nofile=512:1024") as container:
        outlast(container.url)
        assert len(container.log) < 1_000_000


@pytest.mark.long
def test_after_a_mapped_model_disappears_models_are_not_mapped(start: Start, cache: Path) -> None:
    page = jpeg(text_page(["First line"], (1200, 400))[0])
    with start() as container, container.client() as client:

        def ocr() -> httpx.Response:
            return client.post("/ocr", files={"file": page})

        read = ocr().json()
        until(lambda: container.log.count("loaded ocr") >= 4)
        before = container.processes()
        for weights in cache.glob("ocr/*/*/prepared/[!.]*/weights.bin"):
            os.truncate(weights, 4096)
        with contextlib.suppress(httpx.TransportError):
            ocr()
        until(partial(fresh, container, before))
        until(lambda: ocr().status_code == 200)
        assert "a mapped model file disappeared" in container.log
        assert "Bus error" in container.log
        assert ocr().json() == read


def test_nothing_can_be_written_but_the_cache_and_tmp(start: Start) -> None:
    program = (
        "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/sys/*' -not -path '/dev/*' 2>/dev/null;"
        "find /tmp /cache -maxdepth 0 -writable; grep Cap /proc/self/status; id -u"
    )
    with start(*HARDENED) as container:
        said = docker("exec", container.name, "bash", "-c", program).splitlines()
        assert said[-1] == "1000"
        assert {line.split()[1] for line in said if line.startswith("Cap")} == {"0" * 16}
        read_only = [line for line in said if line.startswith("/") and not line.startswith(("/tmp", "/cache"))]
        written = [
            path
            for path in read_only
            if docker("exec", container.name, "bash", "-c", f"touch {path!r} && echo y", check=False)
        ]
        assert written == []


def test_no_secret_is_in_a_layer_or_in_dockers_output(image: str, start: Start, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text(KEY)
    secret.chmod(0o444)
    settings = {"API_AUTH_KEY": "", "API_AUTH_KEY_FILE": "/run/secrets/key"}
    with start(f"--volume={secret}:/run/secrets/key:ro", **settings) as held, held.client() as client:
        assert client.post("/check").status_code == 200
        assert KEY not in docker("inspect", held.name)
        assert KEY not in held.log
    history = docker("history", "--no-trunc", image) + docker("inspect", image)
    for word in ("password", "secret", "token", "BEGIN ", "api_auth_key"):
        assert not re.search(rf"\b{word}\b\s*[=:]\s*\S", history, re.I), word
    assert json.loads(docker("inspect", "--format", "{{json .Config.Env}}", image))
    listed = subprocess.run(
        ["docker", "run", "--rm", image, "bash", "-c", "find /usr/src -name '.env*' -o -name '*.pem'"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout == ""

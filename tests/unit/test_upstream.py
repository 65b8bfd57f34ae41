# SPDX-License-Identifier: AGPL-3.0-only
"""Upstream's app behind ours: imported when it is asked for, started and ended, and of no harm where it is broken."""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service import KEY, environment, free_port, until

PREDICT = {"clip": {"visual": {"modelName": "any"}}}

SERVICE = """
import os, signal, sys
import uvicorn
from mt_photos_ml.app import create_app
from mt_photos_ml.api.middleware.lifecycle import Lifecycle
from mt_photos_ml.server.logs import to_stderr
from mt_photos_ml.settings import load
from mt_photos_ml.api.upstream import Upstream

settings = load()
to_stderr(settings.log_level)
fallback = Upstream(settings.immich_api == "open", ("theirs", "app"))
uvicorn.run(create_app(settings, Lifecycle(), fallback), port=int(sys.argv[1]), log_config=None, access_log=False)
"""

APP = """
import contextlib, os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

print("imported", flush=True)

@contextlib.asynccontextmanager
async def lifespan(app):
    print("started", flush=True)
    yield {"pool": "theirs"}
    print("ended", flush=True)

async def predict(request):
    lists = sorted(name for name in os.environ if name.startswith("MACHINE_LEARNING_PRELOAD__"))
    return JSONResponse({"pool": request.state.pool, "lists": lists, "size": len(await request.body())})

app = Starlette(routes=[Route("/predict", predict, methods=["POST"])], lifespan=lifespan)
"""

Serve = Callable[..., contextlib.AbstractContextManager[tuple[httpx.Client, Path]]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Runs the service on a socket with this source as upstream's module; gives a client, and where the log is."""

    @contextlib.contextmanager
    def serving(source: str | None, **settings: str) -> Iterator[tuple[httpx.Client, Path]]:
        if source is not None:
            (tmp_path / "theirs.py").write_text(textwrap.dedent(source))
        port, log = free_port(), tmp_path / "log"
        given = environment(
            {"API_AUTH_KEY": KEY, "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "TASKS": "ocr", **settings}
        )
        given["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVICE, str(port)], env=given, stdout=output, stderr=output
            )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"api-key": KEY}, timeout=30) as client:
                until(lambda: answers(client))
                yield client, log
        finally:
            process.terminate()
            process.wait(30)

    return serving


def answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/ping").text == "pong"
    return False


def test_it_is_imported_and_started_at_the_first_request_that_is_for_it(serve: Serve) -> None:
    with serve(APP) as (client, log):
        client.post("/check")
        assert client.get("/check").status_code == 405
        assert "imported" not in log.read_text()
        for _ in range(2):
            assert client.post("/predict", content=b"12345").json() == {"pool": "theirs", "lists": [], "size": 5}
        assert client.post("/nowhere").status_code == 404
    assert [line for line in log.read_text().splitlines() if " " not in line] == ["imported", "started", "ended"]


def test_nobody_without_the_key_makes_it_start(serve: Serve) -> None:
    with serve(APP) as (client, log):
        for route in ("/predict", "/nowhere", "/docs"):
            assert client.post(route, headers={"api-key": "wrong"}).status_code == 401
        assert "imported" not in log.read_text()


def test_open_it_starts_with_us_and_keeps_its_lists_of_models_to_preload(serve: Serve) -> None:
    lists = {"MACHINE_LEARNING_PRELOAD__OCR__DETECTION": "PP-OCRv6_small"}
    with serve(APP, IMMICH_API="open", **lists) as (client, log):
        until(lambda: "started" in log.read_text())
        answer = client.post("/predict", headers={"api-key": ""})
        assert answer.json()["lists"] == list(lists)


def test_behind_the_key_the_lists_are_ours_alone(serve: Serve) -> None:
    with serve(APP, MACHINE_LEARNING_PRELOAD__OCR__DETECTION="PP-OCRv6_small") as (client, _):
        until(lambda: client.post("/check").json()["loaded"] == ["ocr/PP-OCRv6_small/detection"])
        assert client.post("/predict").json()["lists"] == []


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (None, "No module named 'theirs'"),
        ("def app[T](x: T", "SyntaxError"),
        ("import sys\nsys.exit('no such setting')", "no such setting"),
        ("other = 1", "has no attribute 'app'"),
        (APP.replace('print("started", flush=True)', 'raise OSError("no models")'), "no models"),
    ],
    ids=["absent", "newer-syntax", "exits", "renamed", "fails-to-start"],
)
def test_where_it_is_broken_the_log_says_why_and_ours_goes_on(serve: Serve, source: str | None, why: str) -> None:
    with serve(source) as (client, log):
        for _ in range(2):
            answer = client.post("/predict")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            assert answer.json() == {"result": [], "msg": answer.json()["msg"]}
        assert why in log.read_text()
        assert log.read_text().count("can't be started") == 1  # and is not tried again for a while
        assert client.post("/check").json()["result"] == "pass"
        assert client.post("/nowhere").status_code == 503

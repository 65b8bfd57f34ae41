# SPDX-License-Identifier: AGPL-3.0-only
"""Upstream's app behind ours: imported at its first request, started and ended, and harmless if it is broken."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service import environment, running, until

APP = """
import contextlib, os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

print("importing", flush=True)

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
    """Runs the service with this source as upstream's module; yields a client and the path of the log."""

    @contextlib.contextmanager
    def serving(source: str | None, **settings: str) -> Iterator[tuple[httpx.Client, Path]]:
        upstream = tmp_path / "immich_ml" / "upstream_main.py"
        upstream.parent.mkdir()
        if source is not None:
            upstream.write_text(source)
        path = f"{environment({})['PYTHONPATH']}{os.pathsep}{tmp_path}"
        given = {"PYTHONPATH": path, "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "TASKS": "ocr"}
        with running(tmp_path, {**given, **settings}) as service, service.client() as client:
            yield client, service.log

    return serving


def test_upstreams_app_is_imported_and_started_at_its_first_request_with_the_key(serve: Serve) -> None:
    with serve(APP, MACHINE_LEARNING_PRELOAD__OCR__DETECTION="PP-OCRv6_small") as (client, log):
        until(lambda: client.post("/check").json()["loaded"] == ["ocr/PP-OCRv6_small/detection"])
        assert client.get("/check").status_code == 405
        for route in ("/predict", "/nowhere", "/docs"):
            assert client.post(route, headers={"api-key": "wrong"}).status_code == 401
        assert "importing" not in log.read_text()
        for slashes in ("", "/"):  # only our app gets the lists of models to preload
            told = client.post(f"{client.base_url}{slashes}/predict", content=b"12345").json()
            assert told == {"pool": "theirs", "lists": [], "size": 5}
        assert client.post("/nowhere").status_code == 404
    assert [line for line in log.read_text().splitlines() if " " not in line] == ["importing", "started", "ended"]


def test_if_immich_api_is_open_upstreams_app_starts_with_ours_and_gets_the_models_to_preload(serve: Serve) -> None:
    lists = {"MACHINE_LEARNING_PRELOAD__OCR__DETECTION": "PP-OCRv6_small"}
    with serve(APP, IMMICH_API="open", **lists) as (client, log):
        until(lambda: "started" in log.read_text())
        answer = client.post("/predict", headers={"api-key": ""})
        assert answer.json()["lists"] == list(lists)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (None, "No module named 'immich_ml.upstream_main'"),
        ("def app[T](x: T", "SyntaxError"),
        ("import sys\nsys.exit('no such setting')", "no such setting"),
        ("other = 1", "has no attribute 'app'"),
        (APP.replace('print("started", flush=True)', 'raise OSError("no models")'), "no models"),
    ],
    ids=["absent", "newer-syntax", "exits", "renamed", "fails-to-start"],
)
def test_if_upstreams_app_is_broken_the_log_says_why_and_ours_works(serve: Serve, source: str | None, why: str) -> None:
    with serve(source) as (client, log):
        for _ in range(2):
            answer = client.post("/predict")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
            assert answer.json() == {"result": [], "msg": answer.json()["msg"]}
        assert why in log.read_text()
        assert log.read_text().count("can't be started") == 1  # and is not tried again for a while
        assert client.post("/check").json()["result"] == "pass"
        assert client.post("/nowhere").status_code == 503


@pytest.mark.parametrize(("mode", "count"), [("key", 0), ("off", 3)])
def test_upstreams_settings_are_unknown_only_if_its_app_is_off(serve: Serve, mode: str, count: int) -> None:
    """Of all settings that upstream had up to v3.3, three look like ours."""
    names = "MODEL_TTL_POLL_S MODEL_INTER_OP_THREADS MODEL_ARENA MODEL_ORGANIZATION MODEL_REVISION RKNN_THREADS"
    names += " PRELOAD__OCR__MAX_RESOLUTION MAX_BATCH_SIZE__OCR HTTP_KEEPALIVE_TIMEOUT_S ANN_TUNING_LEVEL"
    given = dict.fromkeys([f"MACHINE_LEARNING_{name}" for name in names.split()], "1")
    with serve(APP, IMMICH_API=mode, **given) as (_, log):
        assert log.read_text().count("is not a setting and is ignored") == count

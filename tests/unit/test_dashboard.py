# SPDX-License-Identifier: AGPL-3.0-only
"""The page and the API behind it: status, models, unused files, the measurement, the OpenAPI document."""

import asyncio
import base64
import gc
import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from inside import Inside, asking, eventually
from mt_photos_ml import version
from mt_photos_ml.dashboard import routes

pytestmark = pytest.mark.anyio
VISUAL = "clip/demo-colours/visual"


async def test_a_model_can_be_loaded_and_unloaded_unless_it_is_in_use(cache: Path) -> None:
    inside = Inside(cache)
    store = inside.engine.store
    async with asking(inside) as client:
        assert (await client.post("/api/models/clip/visual/load")).json() == {"result": "pass"}
        await eventually(lambda: store.loaded == [VISUAL])
        async with store.use(inside.engine.networks.clip_visual):
            answer = await client.post("/api/models/clip/visual/unload")
        assert (answer.status_code, answer.json()) == (409, {"result": [], "msg": f"{VISUAL} is in use"})
        assert store.loaded == [VISUAL]
        assert (await client.post("/api/models/clip/visual/unload")).json() == {"result": "pass"}
        assert store.loaded == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("clip/visual/explode", "explode: expected pull, load or unload"),
        ("clip/detection/load", "clip/detection is not a model in use"),
        ("faces/detection/load", "faces/detection is not a model in use"),  # the task is off
    ],
)
async def test_an_unknown_model_or_action_is_404(cache: Path, path: str, why: str) -> None:
    async with asking(Inside(cache, TASKS="ocr,clip")) as client:
        answer = await client.post(f"/api/models/{path}")
        assert (answer.status_code, answer.json()) == (404, {"result": [], "msg": why})


@pytest.mark.parametrize("action", ["pull", "load"])
async def test_pull_and_load_are_answered_at_once_and_may_fail_later(
    cache: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    inside, may_end, steps = Inside(cache), asyncio.Event(), list[str]()
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))

    async def work(key: Any) -> None:
        steps.append(str(key.ref))
        await may_end.wait()
        steps.append("end")
        raise RuntimeError("no mirror")

    monkeypatch.setattr(inside.engine.store, action, work)
    async with asking(inside) as client:
        answer = await client.post(f"/api/models/clip/textual/{action}")
        assert (answer.status_code, answer.json()) == (200, {"result": "pass"})
        await eventually(lambda: steps == ["clip/demo-colours/textual"])
        gc.collect()
        may_end.set()
        await eventually(lambda: steps[-1] == "end")
        gc.collect()
    assert not unhandled


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A cache with two models that are not used."""
    for name, size in (("ViT-B-32__openai", 2_500_002), ("RN50__openai", 400_000)):
        visual = tmp_path / "clip" / name / "visual"
        visual.mkdir(parents=True)
        (visual / "model.onnx").write_bytes(bytes(size))
    return tmp_path


async def test_unused_models_are_listed_and_deleted(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"clip/RN50__openai": 0, "clip/ViT-B-32__openai": 3}
    async with asking(Inside(old, TASKS="ocr")) as client:
        assert (await client.get("/api/models/unused")).json() == {"result": sizes}
        assert (old / "clip" / "RN50__openai").is_dir()
        with caplog.at_level("INFO", "mt_photos_ml"):
            assert (await client.delete("/api/models/unused")).json() == {"result": sizes}
        assert "deleted clip/RN50__openai, clip/ViT-B-32__openai" in caplog.messages
        assert list((old / "clip").iterdir()) == []
        assert (await client.delete("/api/models/unused")).json() == {"result": {}}


async def test_deleting_unused_models_from_a_read_only_cache_is_503(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete(paths: list[Path]) -> None:
        assert [path.name for path in paths] == ["RN50__openai", "ViT-B-32__openai"]
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mt_photos_ml.dashboard.routes.delete", delete)
    async with asking(Inside(old, TASKS="ocr")) as client:
        answer = await client.delete("/api/models/unused")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "60"
    assert answer.json() == {"result": [], "msg": "the cache can't be written: Permission denied"}


async def test_only_one_measurement_runs_at_a_time(cache: Path) -> None:
    may_end = asyncio.Event()

    class Measuring(Inside):
        async def bench(self) -> object:
            self.benches += 1
            await may_end.wait()
            return {"tasks": [self.benches]}

    inside = Measuring(cache)
    async with asking(inside) as client:
        first = asyncio.create_task(client.post("/api/bench"))
        await eventually(lambda: inside.benches == 1)
        answer = await client.post("/api/bench")
        assert (answer.status_code, answer.json()["msg"]) == (409, "a measurement is already running")
        may_end.set()
        assert (await first).json() == {"result": {"tasks": [1]}}
        assert (await client.post("/api/bench")).json() == {"result": {"tasks": [2]}}


async def test_every_route_of_the_openapi_document_is_served_with_its_methods_and_no_others(cache: Path) -> None:
    async with asking(Inside(cache)) as client:
        document = (await client.get("/openapi.json")).json()
        assert document["info"]["version"] == version()
        for path, methods in document["paths"].items():
            if not path.startswith(("/restart", "/api/bench", "/predict")):
                for method in ("get", "post", "put", "delete"):
                    answer = await client.request(method, path.format(task="clip", type="visual", action="unload"))
                    assert answer.status_code in ((200, 422) if method in methods else (405,)), (method, path)
        assert (await client.get("/docs")).status_code == 404


def assert_runs_only(answer: httpx.Response, *tags: str) -> None:
    """Asserts that the policy allows exactly the content of these tags, and no other site to frame the page."""
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    for tag in tags:
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert "script-src" not in rules
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


async def test_the_pages_policy_allows_only_its_own_script_and_style(cache: Path) -> None:
    async with asking(Inside(cache)) as client:
        answer = await client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert_runs_only(answer, "script", "style")
    assert not re.search(r'\bsrc="|<link(?! rel="icon" href="data:,")|@import|\son\w+="', answer.text)
    assert "mt_photos_ai_extra" in answer.text
    folder = Path(routes.__file__).parent / "page"
    for name in ("page.js", "page.css"):
        assert (folder / name).read_text(encoding="utf-8").strip() in answer.text


async def test_the_page_says_version_address_vector_length_and_warnings(cache: Path) -> None:
    names = dict.fromkeys(("FACE_DETECTION_MODEL_NAME", "FACE_RECOGNITION_MODEL_NAME"), "a")
    own = Inside(cache, ["there is no key"], CLIP_VISUAL_MODEL_NAME="mine", API_AUTH_KEY="no-key", **names)
    for inside, length, demo, others in ((Inside(cache), "512", "true", "false"), (own, "?", "false", "true")):
        async with asking(inside) as client:
            page = (await client.get("/")).text
        (body,) = re.findall(r"<body ([^>]*)>", page)
        facts = {"length": length, "demo": demo, "warned": others, "open": others}
        told = dict(re.findall(r'data-([a-z]+)="([^"]*)"', body))
        assert told == {"version": version(), "address": "http://inside:8060", **facts}
        for shown in (
            f"<small>{version()}</small>",
            '<code id="address">http://inside:8060</code>',
            f"<code>{length}<",
        ):
            assert shown in page


async def test_values_filled_into_the_page_are_escaped_and_not_expanded(cache: Path) -> None:
    inside = Inside(cache)
    transport = httpx.ASGITransport(inside.app, root_path='/{{length}}/*script*/$length"><script>')
    async with httpx.AsyncClient(transport=transport, base_url="http://inside") as client:
        answer = await client.get("/")
    inside.engine.close()
    assert_runs_only(answer, "script", "style")
    address = "http://inside/{{length}}/*script*/$length&quot;&gt;&lt;script&gt;"
    assert f'<code id="address">{address}</code>' in answer.text

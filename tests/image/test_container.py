# SPDX-License-Identifier: AGPL-3.0-only
"""What only a container can show: signals, restarts, health, users, memory, and upstream's route behind the key."""

import errno
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from demo.pictures import colour_photo, group_photo, text_page
from image.container import BASE, HARDENED, ROOT, START, Container, Start, docker, passes
from photos import jpeg
from service import KEY, free_port, until

LINES = ["First line of many", "Second line"]
PREDICT = {"clip": {"visual": {"modelName": "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"}}}
PRELOAD = "MACHINE_LEARNING_PRELOAD__OCR__DETECTION"
OPENED_BY_UPSTREAM = "attempt 1"  # as the stand-in logs it
GUNICORN = """
import json, os, sys
from types import SimpleNamespace
from gunicorn.app.wsgiapp import WSGIApplication

sys.argv = sys.argv[3:]
told = WSGIApplication().cfg
"""
TOLD = GUNICORN + "print(json.dumps([told.keepalive, told.graceful_timeout]))"
DEALT = f"""{GUNICORN}
server = SimpleNamespace(WORKERS={{}})
for number in (1, 2, 3):
    server.WORKERS[number] = worker = SimpleNamespace()
    told.pre_fork(SimpleNamespace(WORKERS={{n: w for n, w in server.WORKERS.items() if n != number}}), worker)
    print(os.environ["MACHINE_LEARNING_DEVICE_ID"])
del server.WORKERS[1]
told.pre_fork(server, SimpleNamespace())
print(os.environ["MACHINE_LEARNING_DEVICE_ID"])
"""


@pytest.fixture(scope="module")
def page() -> bytes:
    return jpeg(text_page(LINES, (2400, 1800))[0])


def post(client: httpx.Client, route: str, photo: bytes) -> httpx.Response:
    return client.post(route, files={"file": photo})


def predict(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/predict", files={"image": photo}, data={"entries": json.dumps(PREDICT)})


def test_the_container_passes_the_contract_tests(image: str, cache: Path) -> None:
    passes("scripts.contract", image, "--cache", str(cache), "-q")


def test_the_layers_that_we_add_are_small_and_nothing_was_run_in_them(image: str) -> None:
    ours, theirs = (
        docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", name).splitlines()
        for name in (image, BASE)
    )
    added = [line.split("\t") for line in ours[: len(ours) - len(theirs)]]
    assert 0 < sum(int(size) for size, _ in added) < 1_000_000
    assert not any("/bin/sh -c" in made and "#(nop)" not in made for _, made in added)
    assert "\nRUN" not in (ROOT / "Dockerfile").read_text()


def test_the_image_differs_from_its_base_only_as_the_docs_say(image: str) -> None:
    ours, theirs = (json.loads(docker("inspect", "--format", "{{json .Config}}", name)) for name in (image, BASE))
    section = (ROOT / "docs" / "migration.md").read_text().partition("## What it changes in upstream")[2]
    table = dict(re.findall(r"^\| (.+?) \|.*\| (.+?) \|$", section, re.M))
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert differing == {"Cmd", "Healthcheck", "ExposedPorts", "Env", "Labels"}
    assert f"`{shlex.join(ours['Cmd'])}`" in table["`CMD`"]
    assert f"`{shlex.join(ours['Healthcheck']['Test'][1:])}`" in table["`HEALTHCHECK`"]
    assert [f"{port}/tcp" for port in table["`EXPOSE`"].split()] == list(ours["ExposedPorts"])
    assert set(ours["Env"]) - set(theirs["Env"]) == {f"OCR_MODEL_NAME={table['`OCR_MODEL_NAME`'].strip('`')}"}
    assert set(theirs["Env"]) <= set(ours["Env"])
    labels = {name.rpartition(".")[2]: value for name, value in ours["Labels"].items() if ".base." not in name}
    assert labels["version"] == (ROOT / "VERSION").read_text().strip()
    assert len(labels["revision"].removesuffix("-dirty")) == 40
    assert ours["Labels"]["org.opencontainers.image.base.name"] == BASE
    keepalive, graceful_timeout = json.loads(docker("run", "--rm", image, "python", "-c", TOLD, *START))
    assert f"{keepalive} s" in table["gunicorn: a connection is kept for"]
    assert f"{graceful_timeout} s" in table["gunicorn: requests in flight are given"]


def test_files_are_added_and_one_is_replaced(image: str) -> None:
    program = "cd /usr/src && find . -type f -not -path '*/__pycache__/*' -exec sha256sum {} +"
    ours, theirs = (
        {line.split()[1]: line.split()[0] for line in docker("run", "--rm", name, "bash", "-c", program).splitlines()}
        for name in (image, BASE)
    )
    assert {path for path in theirs if ours.get(path) != theirs[path]} == {"./immich_ml/main.py"}
    added = {path.split("/")[1] if path.count("/") > 1 else path for path in ours.keys() - theirs.keys()}
    assert added == {"mt_photos_ml", "./healthcheck.bash", "immich_ml"}
    assert ours["./immich_ml/upstream_main.py"] == theirs["./immich_ml/main.py"]


@pytest.mark.parametrize("options", [{}, {"IMMICH_HOST": "nas"}])
def test_the_health_check_turns_healthy_wherever_it_listens(start: Start, options: dict[str, str]) -> None:
    with start("--hostname=nas", **options) as container:
        until(lambda: container.state["Health"]["Status"] == "healthy")


@pytest.mark.parametrize("options", [(), HARDENED])
def test_it_works_as_root_and_as_anybody_with_a_read_only_root(
    start: Start, page: bytes, options: tuple[str, ...]
) -> None:
    with start(*options) as container, container.client() as client:
        assert post(client, "/ocr", page).json()["result"]["texts"] == LINES
        assert len(post(client, "/clip/img", page).json()["result"]) == 512
        people = jpeg(group_photo((900, 700), [1, 2])[0])
        assert len(post(client, "/represent", people).json()["result"]) == 2
        assert len(client.post("/clip/txt", json={"text": "红色"}).json()["result"]) == 512


def test_docker_stop_lets_requests_in_progress_finish(start: Start, page: bytes) -> None:
    with start() as container, container.client() as client, ThreadPoolExecutor(5) as threads:
        post(client, "/ocr", page)
        answers = [threads.submit(post, client, "/ocr", page) for _ in range(4)]
        time.sleep(0.3)
        docker("stop", "--time=30", container.name)
        assert [answer.result().json()["result"]["texts"] for answer in answers] == [LINES] * 4
        assert container.state["ExitCode"] == 0


def test_restart_v2_replaces_the_worker_after_requests_in_progress(start: Start, page: bytes) -> None:
    with start() as container, container.client() as client, ThreadPoolExecutor(3) as threads:
        post(client, "/ocr", page)
        before = container.processes()
        answers = [threads.submit(post, client, "/ocr", page) for _ in range(3)]
        time.sleep(0.3)
        assert client.post("/restart_v2").json() == {"result": "pass"}
        assert [answer.result().json()["result"]["texts"] for answer in answers] == [LINES] * 3
        until(lambda: container.processes() - before != set() and _works(container, page))
        assert len(before - container.processes()) == 1  # the worker; tini and gunicorn stay


def _works(container: Container, page: bytes) -> bool:
    try:
        with container.client() as client:
            return post(client, "/ocr", page).status_code == 200
    except httpx.TransportError:
        return False


def test_memory_is_released_after_the_idle_time_and_the_process_stays(start: Start, page: bytes) -> None:
    with start(MACHINE_LEARNING_MODEL_TTL="3") as container, container.client() as client:
        before = container.processes()
        for _ in range(6):
            assert post(client, "/ocr", page).status_code == 200
            time.sleep(1)
        used = _memory_mb(container)
        until(lambda: client.post("/check").json()["loaded"] == [])
        until(lambda: _memory_mb(container) < used - 100)
        assert container.processes() == before


def test_upstreams_memory_is_released_too_when_it_is_idle(start: Start) -> None:
    photo = jpeg(colour_photo("red", (640, 480)))
    idle = {"MACHINE_LEARNING_MODEL_TTL": "3", "MACHINE_LEARNING_MODEL_TTL_POLL_S": "1"}
    with start(**idle) as container, container.client() as client:
        before, idle_mb = container.processes(), _memory_mb(container)
        assert predict(client, photo).status_code == 200
        assert _memory_mb(container) > idle_mb + 25
        until(lambda: container.processes() - before != set())
        until(lambda: _memory_mb(container) < idle_mb + 15)
        assert client.post("/check").json()["result"] == "pass"


def _memory_mb(container: Container) -> float:
    """Anonymous memory of all processes in the container."""
    total = 0.0
    for pid in container.processes():
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        total += sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))
    return total


def test_upstreams_route_is_behind_the_key_and_answers_as_ours(start: Start) -> None:
    photo = jpeg(colour_photo("red", (640, 480)))
    with start() as container:
        with container.client(key=None) as stranger:
            assert predict(stranger, photo).status_code == 401
        with container.client() as client:
            ours = [float(number) for number in post(client, "/clip/img", photo).json()["result"]]
            assert OPENED_BY_UPSTREAM not in container.log
            theirs = json.loads(predict(client, photo).json()["clip"])
        assert sum(a * b for a, b in zip(ours, theirs, strict=True)) > 0.9999


def test_our_routes_work_even_if_upstreams_app_is_broken(start: Start, page: bytes, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("def app[")  # tests/unit/test_upstream.py breaks it in other ways
    with start(f"--volume={tmp_path}/main.py:/usr/src/immich_ml/upstream_main.py") as container:
        with container.client() as client:
            answer = predict(client, page)
            assert (answer.status_code, answer.json()["result"]) == (503, [])
            assert post(client, "/ocr", page).json()["result"]["texts"] == LINES
        assert "Immich's own API can't be started" in container.log
        assert "upstream_main" in container.log


def test_upstreams_npu_session_runs_the_models_that_have_a_file_for_it(
    start: Start, cache: Path, tmp_path: Path
) -> None:
    """The NPU's libraries and upstream's session are stand-ins; the code that finds and calls them is real."""
    shutil.copytree(cache, tmp_path / "cache")
    for model in (tmp_path / "cache").glob("facial-recognition/*/*/model.onnx"):
        model.rename(model.with_suffix(".armnn"))
    for path in (tmp_path / "cache").rglob("*"):
        path.chmod(0o777)
    library = "/usr/lib/x86_64-linux-gnu/libz.so.1"
    mounts = [f"--volume={library}:/usr/lib/{name}:ro" for name in ("libmali.so", "libann.so")]
    with start(
        *mounts, f"--volume={tmp_path}/cache:/models", DEVICE="armnn", MACHINE_LEARNING_CACHE_FOLDER="/models"
    ) as container:
        with container.client() as client:
            people = jpeg(group_photo((900, 700), [1, 2])[0])
            assert len(post(client, "/represent", people).json()["result"]) == 2
            assert len(client.post("/clip/txt", json={"text": "红色"}).json()["result"]) == 512
        assert "can't be used" not in container.log


def test_the_service_listens_on_a_host_without_ipv6(start: Start, tmp_path: Path) -> None:
    refused = {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EAFNOSUPPORT}
    refused["args"] = [{"index": 0, "value": int(socket.AF_INET6), "op": "SCMP_CMP_EQ"}]
    profile = tmp_path / "no-ipv6.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}))
    with start(f"--security-opt=seccomp={profile}") as container:
        assert "no IPv6, listening on 0.0.0.0" in container.log
        until(lambda: container.state["Health"]["Status"] == "healthy")


def test_each_worker_gets_a_card_in_turn(image: str) -> None:
    dealt = docker("run", "--rm", "--env=MACHINE_LEARNING_DEVICE_IDS=4, 7", image, "python", "-c", DEALT, *START)
    assert dealt.split() == ["4", "7", "4", "4"], "workers 1 and 3 have card 4; worker 1 then ends"
    kept = docker("run", "--rm", "--env=MACHINE_LEARNING_DEVICE_ID=5", image, "python", "-c", DEALT, *START)
    assert set(kept.split()) == {"5"}


@pytest.mark.parametrize(("mode", "key", "status"), [("open", None, 200), ("off", KEY, 404)])
def test_upstreams_route_can_be_opened_or_removed(start: Start, mode: str, key: str | None, status: int) -> None:
    with start(IMMICH_API=mode) as container, container.client(key) as client:
        assert predict(client, jpeg(colour_photo("red", (640, 480)))).status_code == status


def test_a_header_without_end_is_refused(start: Start) -> None:
    with start() as container:
        host, port = container.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000)
            assert connection.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("OCR_MIN_SCORE", "abc", "mt-photos-ml: OCR_MIN_SCORE=abc: expected"),
        ("API_AUTH_KEY", "", 'mt-photos-ml: API_AUTH_KEY="": expected a key'),
        (PRELOAD, "foo", f"mt-photos-ml: {PRELOAD}=foo"),
        ("MACHINE_LEARNING_DEVICE_IDS", "0;1", "mt-photos-ml: MACHINE_LEARNING_DEVICE_IDS=0;1: expected"),
    ],
)
def test_a_wrong_setting_stops_the_container_with_one_line(start: Start, name: str, value: str, line: str) -> None:
    with start(waits=False, **{name: value}) as container:
        until(lambda: not container.state["Running"])
        (said,) = container.log.splitlines()
        assert said.startswith(line)


def test_an_empty_setting_counts_as_unset(start: Start) -> None:
    empty = {"MACHINE_LEARNING_MODEL_TTL": "", "IMMICH_PORT": "", "HF_ENDPOINT": "", "MACHINE_LEARNING_WORKERS": ""}
    with start(**empty) as container, container.client() as client:
        assert client.post("/check").json()["result"] == "pass"
        assert "vectors of 512 numbers" in container.log


@pytest.mark.parametrize("name", [PRELOAD, PRELOAD.lower()])
def test_our_models_are_preloaded_by_us_and_not_by_upstream_too(start: Start, cache: Path, name: str) -> None:
    with start(**{name: "PP-OCRv5_mobile"}) as container, container.client() as client:
        until(lambda: client.post("/check").json()["loaded"] == ["ocr/PP-OCRv5_mobile/detection"])
        assert OPENED_BY_UPSTREAM not in container.log
        until(lambda: bool(list(cache.glob("ocr/PP-OCRv5_mobile/detection/prepared/*/weights.bin"))))


def test_restart_releases_the_memory(start: Start, page: bytes) -> None:
    with start() as container, container.client() as client:
        post(client, "/ocr", page)
        used = _memory_mb(container)
        until(lambda: client.post("/restart").is_success and _memory_mb(container) < used - 100)
        until(lambda: _works(container, page))


def test_compose_starts_it_without_an_env_file_and_with_the_settings_of_one(
    image: str, cache: Path, tmp_path: Path
) -> None:
    if not docker("compose", "version", check=False):
        pytest.skip("no docker compose on this machine")
    shown = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["cpu"]["image"]
    name = "registry.invalid/" + shown.rpartition("}/")[2]
    assert not docker("images", "--quiet", name), f"there is an image {name} already, and the test must not replace it"
    docker("tag", image, name)
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    port = free_port()
    given = {**os.environ, "HOST_PORT": str(port), "CACHE_FOLDER": str(cache), "REGISTRY": "registry.invalid"}
    command = ["docker", "compose", "--project-name=mt-photos-ml-test", "--profile=cpu"]
    try:
        for key, env in (("mt_photos_ai_extra", None), ("from the file", "API_AUTH_KEY=from the file\nTASKS=ocr\n")):
            if env:
                (tmp_path / ".env").write_text(env)
            subprocess.run([*command, "up", "--detach", "--wait"], cwd=tmp_path, env=given, check=True)
            about = httpx.post(f"http://127.0.0.1:{port}/check", headers={"api-key": key}).json()
            assert about["tasks"] == (["ocr"] if env else ["clip", "faces", "ocr"])
    finally:
        subprocess.run([*command, "down", "--volumes"], cwd=tmp_path, env=given, check=True)
        docker("rmi", name)

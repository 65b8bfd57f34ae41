# SPDX-License-Identifier: AGPL-3.0-only
"""The overlay, unedited, on every ground that it is laid over: other releases of upstream, the libraries of other
devices, another machine. tests/image/test_container.py has the first of them, v2.5.6 on the processor."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from image import standin
from image.container import ROOT, build, docker
from service import KEY, free_port, until

CONTAINERS = [("v2.5.6", "openvino"), ("v2.5.6", "cuda"), ("v3.0.3", "cpu"), ("v3.3.0", "cpu")]
ARM64 = "linux/arm64"
ONE_OF_EACH = (  # of the contract, in emulation: each route once, and text once
    "test_the_page or test_ping or test_check_takes or test_restart_gives or test_ocr_answers_with_empty"
    " or test_a_photo_gets or test_any_text or test_represent or test_without_the_key or png-16-bit"
    " or (test_faces_in_a_photo_turned_by_exif and 6-JPEG)"
)
WORDS_OF_A_DEVICE = {"openvino": "OpenVINO can't be used here", "cuda": "CUDA can't be used here"}


def contract(image: str, cache: Path, *words: str) -> str:
    """The contract's result in a container of the image; pytest's closing line."""
    command = [sys.executable, "-m", "scripts.contract", image, "--cache", str(cache), "-q", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr
    return ended.stdout.strip().splitlines()[-1]


@pytest.mark.usefixtures("image")  # which skips where there is no Docker
@pytest.mark.parametrize(("release", "variant"), CONTAINERS)
def test_the_contract_holds(release: str, variant: str, cache: Path, tmp_path: Path) -> None:
    tag = f"mt-photos-ml-test:{release}-{variant}"
    build(standin.build(release, variant), tag)
    shutil.copytree(cache, tmp_path / "cache")
    print(f"{release} {variant}: {contract(tag, tmp_path / 'cache')}")
    if variant in WORDS_OF_A_DEVICE:
        assert list((tmp_path / "cache").rglob("prepared/*/weights.bin")), "the processor's prepared models are used"


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("variant", WORDS_OF_A_DEVICE)
def test_a_device_that_is_not_there_is_said_once(variant: str, cache: Path, start_here: "Starter") -> None:
    build(standin.build("v2.5.6", variant), f"mt-photos-ml-test:v2.5.6-{variant}")
    with start_here(f"mt-photos-ml-test:v2.5.6-{variant}", cache) as (client, name):
        for text in ("red", "blue"):
            assert client.post("/clip/txt", json={"text": text}).status_code == 200
        client.post("/restart")
        assert client.post("/clip/txt", json={"text": "green"}).status_code == 200
        log = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=True)
        assert (log.stdout + log.stderr).count(WORDS_OF_A_DEVICE[variant]) == 1


class Starter:
    """Starts a container of an image with this cache."""

    @contextlib.contextmanager
    def __call__(self, image: str, cache: Path) -> Iterator[tuple[httpx.Client, str]]:
        port = free_port()
        name = f"mt-photos-ml-test-{port}"
        options = [f"--name={name}", f"--publish=127.0.0.1:{port}:3003", f"--volume={cache}:/cache"]
        docker("run", "--detach", *options, f"--env=API_AUTH_KEY={KEY}", image)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"api-key": KEY}, timeout=60) as client:
                until(lambda: _answers(client))
                yield client, name
        finally:
            docker("rm", "--force", "--volumes", name)


@pytest.fixture
def start_here() -> Starter:
    return Starter()


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/ping").text == "pong"
    return False


@pytest.mark.usefixtures("image")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine is arm64 itself")
def test_arm64_is_built_and_answers_in_emulation(cache: Path) -> None:
    if not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        pytest.skip("this machine does not emulate arm64 (qemu-user-static, binfmt_misc)")
    tag = "mt-photos-ml-test:arm64"
    build(standin.build(platform=ARM64), tag, ARM64)
    assert docker("image", "inspect", "--format={{.Architecture}}", tag) == "arm64"
    print(f"arm64: {contract(tag, cache, '--platform', ARM64, '--healthy-within=600', '-k', ONE_OF_EACH)}")


def python_312() -> str | None:
    """A Python 3.12 of this machine, which the AMD image has."""
    found = [shutil.which("python3.12"), *map(str, Path.home().glob(".pyenv/versions/3.12*/bin/python3.12"))]
    works = (path for path in found if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0)
    return next(works, None)


@pytest.mark.skipif(python_312() is None, reason="no Python 3.12 on this machine")
def test_the_contract_holds_on_the_libraries_of_the_amd_image(cache: Path, tmp_path: Path) -> None:
    """As a process: AMD's base is 30 GB. Its onnxruntime is built of 1.22.1 for its cards; here it is the plain one."""
    venv, source, models = tmp_path / "venv", tmp_path / "src", tmp_path / "cache"
    subprocess.run([str(python_312()), "-m", "venv", "--without-pip", venv], check=True)
    site = venv / "lib" / "python3.12" / "site-packages"
    standin.install(standin.lock("v2.5.6", runtime="onnxruntime==1.22.1"), site, "3.12", platform.machine())
    standin.lay_out("v2.5.6", source)
    shutil.copy(source / "immich_ml" / "main.py", source / "immich_ml" / "upstream_main.py")
    for folder in ("patches", "overlay"):
        shutil.copytree(ROOT / folder, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copy(ROOT / "VERSION", source / "mt_photos_ml")
    shutil.copytree(cache, models)
    port = free_port()
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(source),
        "DEVICE": "rocm",
        "API_AUTH_KEY": KEY,
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": str(port),
        "OCR_MODEL_NAME": "PP-OCRv5_mobile",
        "MACHINE_LEARNING_CACHE_FOLDER": str(models),
    }
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(
            [venv / "bin/python", "-m", "gunicorn", "-c", "python:mt_photos_ml.server.gunicorn_conf"],
            cwd=source,
            env=settings,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url) as client:
            until(lambda: _answers(client))
        command = [sys.executable, "-m", "pytest", "tests/contract", "-q"]
        there = {**os.environ, "MT_PHOTOS_ML_URL": url, "MT_PHOTOS_ML_KEY": KEY}
        ended = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-8000:] + (tmp_path / "log").read_text()[-3000:]
        print(f"v2.5.6 rocm's libraries: {ended.stdout.strip().splitlines()[-1]}")
    finally:
        service.terminate()
        service.wait(60)

# SPDX-License-Identifier: AGPL-3.0-only
"""The overlay keeps the contract on other bases: later releases of upstream, the libraries of other devices, arm64.
test_container.py covers v2.5.6 on the CPU. All of these need --long."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from image import standin
from image.container import ROOT, START, Start, build, docker, passes
from scripts.contract import ONE_OF_EACH
from service import KEY, answers, free_port, unload, until

CONTAINERS = [("v2.5.6", "openvino"), ("v2.5.6", "cuda"), ("v3.0.3", "cpu"), ("v3.3.0", "cpu")]
WORDS_OF_A_DEVICE = {"openvino": "OpenVINO can't be used here", "cuda": "CUDA can't be used here"}

pytestmark = pytest.mark.long


def image_on(release: str, variant: str) -> str:
    build(standin.build(release, variant), tag := f"mt-photos-ml-test:{release}-{variant}")
    return tag


@pytest.mark.usefixtures("image")  # skips if there is no Docker
@pytest.mark.parametrize(("release", "variant"), CONTAINERS)
def test_the_contract_holds_in_a_container(release: str, variant: str, cache: Path, tmp_path: Path) -> None:
    models = shutil.copytree(cache, tmp_path / "cache")
    passes("scripts.contract", image_on(release, variant), "--cache", str(models), "-q")
    if variant in WORDS_OF_A_DEVICE:
        assert list(models.rglob("prepared/*/weights.bin")), "no prepared models: the CPU was not used"


@pytest.mark.parametrize("variant", WORDS_OF_A_DEVICE)
def test_a_missing_device_is_logged_once(variant: str, start: Start) -> None:
    with start(image=image_on("v2.5.6", variant)) as container, container.client() as client:
        for text in ("red", "blue"):
            assert client.post("/clip/txt", json={"text": text}).status_code == 200
        unload(client)
        assert client.post("/clip/txt", json={"text": "green"}).status_code == 200
        assert container.log.count(WORDS_OF_A_DEVICE[variant]) == 1


@pytest.mark.usefixtures("image")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine is arm64 itself")
def test_arm64_is_built_and_answers_in_emulation(cache: Path) -> None:
    if not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        pytest.skip("this machine does not emulate arm64 (qemu-user-static, binfmt_misc)")
    here, tag = "linux/arm64", "mt-photos-ml-test:arm64"
    build(standin.build(platform=here), tag, here)
    assert docker("image", "inspect", "--format={{.Architecture}}", tag) == "arm64"
    words = ["--platform", here, "--healthy-within=600", "-q", "-k", ONE_OF_EACH]
    passes("scripts.contract", tag, "--cache", str(cache), *words)


def python_of_this_machine(version: str) -> str:
    """The path of a Python of this version. Skips the test if there is none."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
    works = (
        str(path) for path in found if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
    )
    return next(works, None) or pytest.skip(f"no Python {version} on this machine")


@contextlib.contextmanager
def process(
    folder: Path,
    models: Path,
    release: str,
    python: str,
    runtime: str | None,
    device: str,
    command: Sequence[str],
    **more: str,
) -> Iterator[str]:
    """Starts the overlay with a release's libraries and this command; yields its address. more: settings."""
    venv, source, port = folder / "venv", folder / "src", free_port()
    subprocess.run([python_of_this_machine(python), "-m", "venv", "--without-pip", venv], check=True)
    libraries = standin.lock(release, runtime=runtime)
    standin.install(libraries, venv / "lib" / f"python{python}" / "site-packages", python, platform.machine())
    standin.lay_out(release, source)
    shutil.copy(source / "immich_ml" / "main.py", source / "immich_ml" / "upstream_main.py")
    for ours in ("patches", "overlay"):
        shutil.copytree(ROOT / ours, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copy(ROOT / "VERSION", source / "mt_photos_ml")
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(source),
        "DEVICE": device,
        "API_AUTH_KEY": KEY,
        "IMMICH_HOST": "127.0.0.1",
        "IMMICH_PORT": str(port),
        "OCR_MODEL_NAME": "PP-OCRv5_mobile",
        "MACHINE_LEARNING_CACHE_FOLDER": str(models),
        **more,
    }
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen([venv / "bin" / command[0], *command[1:]], cwd=source, env=settings, stderr=log)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/ping", service, folder / "log"))
        yield f"http://127.0.0.1:{port}"
    finally:
        service.terminate()
        service.wait(60)


def _answers(url: str, service: subprocess.Popen[bytes], log: Path) -> bool:
    assert service.poll() is None, log.read_text()
    return answers(url)


@pytest.mark.parametrize(
    ("release", "python", "runtime", "device"),
    [
        ("v3.3.0", "3.13", None, "cpu"),
        ("v3.4.0", "3.13", None, "cpu"),
        ("v2.5.6", "3.12", "onnxruntime==1.22.1", "rocm"),  # without a container, because its base is 30 GB
    ],
)
def test_the_contract_holds_on_the_libraries_of(
    release: str, python: str, runtime: str | None, device: str, cache: Path, tmp_path: Path
) -> None:
    models = shutil.copytree(cache, tmp_path / "cache")
    with process(tmp_path, models, release, python, runtime, device, START) as url:
        passes("pytest", "tests/contract", "-q", MT_PHOTOS_ML_URL=url, MT_PHOTOS_ML_KEY=KEY)


def test_openvino_passes_the_contract_tests_on_every_task(cache: Path, tmp_path: Path) -> None:
    models, runtime = shutil.copytree(cache, tmp_path / "cache"), standin.RUNTIMES["openvino"]
    named = dict.fromkeys(("OCR_DEVICE", "CLIP_DEVICE", "FACE_DEVICE"), "openvino:cpu")
    with process(tmp_path, models, "v2.5.6", "3.11", runtime, "openvino", START, **named) as url:
        passes("pytest", "tests/contract", "-q", MT_PHOTOS_ML_URL=url, MT_PHOTOS_ML_KEY=KEY)
    log = (tmp_path / "log").read_text()
    planned = re.findall(r"planned (\S+) for OpenVINO CPU", log)
    assert {name.partition("/")[0] for name in planned} == {"ocr", "clip", "facial-recognition"}
    assert "is not used for" not in log

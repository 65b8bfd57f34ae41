# SPDX-License-Identifier: AGPL-3.0-only
"""The service and its commands in a locale whose encoding is not UTF-8, with Chinese folders and names."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from hub_files import DETECTION, WEIGHTS
from hub_server import HubServer
from photos import jpeg
from service import KEY, post, run_command, running

OWN = "我的模型"
FORCED = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = {"zh_CN.GBK": "gbk", "C": "utf-8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the demo's models, and a CLIP model with a Chinese name."""
    (folder := tmp_path_factory.mktemp("locale") / "照片" / "模型").mkdir(parents=True)
    build(folder)
    (folder / "clip" / "demo-colours").rename(folder / "clip" / OWN)
    return folder


@pytest.fixture(params=ENCODINGS)
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The variables of a locale, which is built if the system lacks it."""
    name: str = request.param
    charmap = name.partition(".")[2]
    if charmap:
        if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/zh_CN").exists():
            pytest.skip("no localedef on this machine, or nothing to make a locale of")
        subprocess.run(["localedef", "-f", charmap, "-i", "zh_CN", tmp_path / name], capture_output=True, check=True)
    return {"LC_ALL": name, "LOCPATH": str(tmp_path), **FORCED}


def settings(folder: Path, locale: Mapping[str, str]) -> dict[str, str]:
    names = {"CLIP_VISUAL_MODEL_NAME": OWN, "CLIP_TEXTUAL_MODEL_NAME": OWN, "API_AUTH_KEY": KEY}
    return {**demo_environment(folder), **names, "ALL_PROXY": "http://127.0.0.1:9", **locale}


def test_every_command_reads_and_prints_chinese_names(folder: Path, locale: dict[str, str]) -> None:
    encoding, given = ENCODINGS[locale["LC_ALL"]], settings(folder, locale)
    for command in ("doctor", "models list", "models verify", "models pull"):
        ended = run_command(given, *command.split(), encoding=encoding)
        said = ended.stdout + ended.stderr
        assert ended.returncode == 0, f"{command}: {said}"
        assert OWN in said, f"{command}: {said}"
    absent = run_command({**given, "FACE_DETECTION_MODEL_NAME": "人脸"}, "models", "pull", encoding=encoding)
    assert f"{folder}/facial-recognition/人脸 has no detection/model.onnx" in absent.stderr


def test_a_model_is_downloaded_into_a_folder_with_a_chinese_name(
    server: HubServer, locale: dict[str, str], tmp_path: Path
) -> None:
    cache, own = tmp_path / "照片" / "模型", {"TASKS": "faces", "HF_ENDPOINT": server.endpoint, **locale}
    own |= {"FACE_DETECTION_MODEL_NAME": "buffalo_s", "FACE_RECOGNITION_MODEL_NAME": "buffalo_s"}
    given = {**own, "MACHINE_LEARNING_CACHE_FOLDER": str(cache)}
    pulled = run_command(given, "models", "pull", encoding=ENCODINGS[locale["LC_ALL"]])
    assert pulled.returncode == 0, pulled.stderr
    assert DETECTION.path(cache).read_bytes() == WEIGHTS
    assert str(DETECTION.path(cache)) in pulled.stderr


def test_the_service_loads_a_model_with_a_chinese_name(folder: Path, locale: dict[str, str], tmp_path: Path) -> None:
    with running(tmp_path, settings(folder, locale)) as service, service.client() as client:
        photo = jpeg(Image.new("RGB", (64, 64), "red"))
        for route in ("/ocr", "/clip/img", "/represent"):
            assert post(service, route, photo).status_code == 200
        assert client.post("/clip/txt", json={"text": "红色"}).status_code == 200
        assert OWN in client.get("/api/status").text
        assert client.get("/").status_code == 200
    log = service.log.read_text(ENCODINGS[locale["LC_ALL"]])
    assert f"models are kept in {folder}" in log
    assert f"loaded clip/{OWN}/visual in" in log
    assert "damaged" not in log


@pytest.mark.parametrize(
    ("encoding", "shown"), [("gbk", "模型\\U0001f642"), ("ascii", "\\u6a21\\u578b\\U0001f642"), ("utf-8", "模型🙂")]
)
def test_characters_that_a_terminal_cannot_show_are_escaped(tmp_path: Path, encoding: str, shown: str) -> None:
    (own := tmp_path / "clip" / "模型🙂" / "visual").mkdir(parents=True)
    (own / "model.onnx").touch()
    given = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path), "PYTHONIOENCODING": encoding}
    listed = run_command(given, "models", "list", encoding=encoding)
    assert listed.returncode == 0, listed.stderr
    assert shown in listed.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MACHINE_LEARNING_CACHE_FOLDER", "a folder with a name in UTF-8"),
        ("CLIP_VISUAL_MODEL_NAME", "the name of a model"),
    ],
)
def test_a_name_that_is_not_in_utf8_is_refused_with_the_reason(tmp_path: Path, name: str, expected: str) -> None:
    ended = run_command({name: os.fsdecode(os.fsencode(tmp_path / "x") + "照片".encode("gbk"))}, "doctor")
    assert ended.returncode == 2
    assert f"mt-photos-ml: {name}=" in ended.stderr
    assert f": expected {expected}\n" in ended.stderr

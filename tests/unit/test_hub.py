# SPDX-License-Identifier: AGPL-3.0-only
"""Models are fetched from the hub that answers, whole or not at all, and only what a task needs."""

import hashlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_files import DETECTION, NAME, PATH, REPOSITORY, TEXTUAL, VISUAL, WEIGHTS, files, nobody_listens, stage
from hub_server import REVISION, HubServer
from mt_photos_ml.models import progress, transfer
from mt_photos_ml.models.catalog import CLIP, FACES, OCR, OCR_MODELS, ModelRef, OcrFile
from mt_photos_ml.models.checksums import known_checksums, record_checksums, spoiled_files
from mt_photos_ml.models.hub import DownloadError, Hub
from mt_photos_ml.models.sources import file_in_wheel, offered_files
from mt_photos_ml.models.transfer import RemoteFile

pytestmark = pytest.mark.usefixtures("impatient")
carried_here = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None, reason="RapidOCR is not installed: nothing is carried in its wheel"
)


@pytest.fixture
def ocr(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> ModelRef:
    """An OCR model that no wheel carries, with weights of the test's own."""
    path = OCR_MODELS["PP-OCRv5_mobile"]["recognition"].path
    file = OcrFile(path, hashlib.sha256(WEIGHTS).hexdigest(), "")
    monkeypatch.setitem(OCR_MODELS, "PP-OCRv5_mobile", {"recognition": file})
    server.release[path] = WEIGHTS
    return ModelRef(OCR, "PP-OCRv5_mobile", "recognition")


def test_only_the_files_that_a_part_needs_are_fetched(server: HubServer, tmp_path: Path) -> None:
    model = Hub(tmp_path, server.endpoint).fetch(VISUAL)

    assert model == tmp_path / CLIP / NAME / "visual" / "model.onnx"
    assert model.read_bytes() == WEIGHTS
    assert files(tmp_path / CLIP / NAME) == {
        "config.json",
        "visual/model.onnx",
        "visual/onnx__MatMul_1",
        "visual/preprocess_cfg.json",
        "SHA256SUMS",
    }
    assert set(server.sent) == files(tmp_path / CLIP / NAME) - {"SHA256SUMS"}


def test_of_a_face_model_one_network_is_fetched(server: HubServer, tmp_path: Path) -> None:
    Hub(tmp_path, server.endpoint).fetch(DETECTION)
    assert server.sent == ["detection/model.onnx"]


def test_the_second_part_keeps_what_the_first_one_brought(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    hub.fetch(VISUAL)
    hub.fetch(TEXTUAL)
    assert sorted(server.sent).count("config.json") == 1
    assert hub.verify(VISUAL) is None
    assert hub.verify(TEXTUAL) is None


def test_a_model_that_is_there_asks_nobody(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    first = hub.fetch(VISUAL)
    server.requests.clear()
    assert hub.fetch(VISUAL) == first
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL) == first
    assert server.requests == []


def test_a_file_put_there_by_hand_is_kept(server: HubServer, tmp_path: Path) -> None:
    config = tmp_path / CLIP / NAME / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"embed_dim": 512, "mine": true}')
    Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert "mine" in config.read_text()
    assert "config.json" not in server.sent


@pytest.mark.parametrize("fault", ["refuses", "answers 500", "never answers", "has no such model", "is no hub"])
def test_the_second_endpoint_is_asked_where_the_first(
    server: HubServer, other: HubServer, tmp_path: Path, fault: str
) -> None:
    first = server.endpoint
    if fault == "refuses":
        first = nobody_listens()
    elif fault == "answers 500":
        server.status = 500
    elif fault == "never answers":
        server.silent = True
    elif fault == "has no such model":
        server.repositories.clear()
    else:
        server.status = 200
    began = time.monotonic()
    model = Hub(tmp_path, endpoints=[first, other.endpoint]).fetch(VISUAL)
    assert model.read_bytes() == WEIGHTS
    assert time.monotonic() - began < 15


def test_an_error_names_every_endpoint_what_came_of_it_and_what_to_do(
    server: HubServer, other: HubServer, tmp_path: Path
) -> None:
    server.status, other.silent = 503, True
    closed, unknown = nobody_listens(), "http://nowhere.invalid"
    with pytest.raises(DownloadError) as raised:
        Hub(tmp_path, endpoints=[server.endpoint, other.endpoint, closed, unknown]).fetch(VISUAL)
    message = str(raised.value)
    assert f"{server.endpoint}: HTTP 503 Service Unavailable" in message
    assert f"{other.endpoint}: no answer in time" in message
    assert f"{closed}: connection refused" in message
    assert f"{unknown}: its name is not known here (DNS)" in message
    assert "HF_ENDPOINT" in message
    assert str(tmp_path / CLIP / NAME) in message
    assert "\n" not in message
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_repository_without_the_part_says_so(server: HubServer, tmp_path: Path) -> None:
    del server.repositories[PATH]["visual/preprocess_cfg.json"]
    with pytest.raises(DownloadError, match=r"has no visual/preprocess_cfg\.json"):
        Hub(tmp_path, server.endpoint).fetch(VISUAL)


def test_a_disk_that_is_too_small_is_said_before_a_byte_is_fetched(server: HubServer, tmp_path: Path) -> None:
    server.claimed["visual/model.onnx"] = 10**18
    with pytest.raises(DownloadError, match=r"needs 1000000000000 MB, but .* has only .* MB free"):
        Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert server.sent == []


def test_a_cache_that_cannot_be_written_is_named(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DownloadError, match="can't be stored") as raised:
        Hub(tmp_path / "file", server.endpoint).fetch(VISUAL)
    assert str(tmp_path / "file") in str(raised.value)
    assert "MACHINE_LEARNING_CACHE_FOLDER" in str(raised.value)


def test_the_model_file_is_put_in_place_last(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / CLIP / NAME / "visual" / "preprocess_cfg.json").mkdir(parents=True)
    with pytest.raises(DownloadError, match="can't be stored"):
        Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert not (tmp_path / CLIP / NAME / "visual" / "model.onnx").exists()


def test_threads_that_want_one_model_share_a_download(server: HubServer, tmp_path: Path) -> None:
    server.pause = 0.1
    hub = Hub(tmp_path, server.endpoint)
    with ThreadPoolExecutor(4) as pool:
        models = set(pool.map(hub.fetch, [VISUAL] * 4))
    assert len(models) == 1
    assert server.sent.count("visual/model.onnx") == 1
    assert server.requests.count((f"list {PATH}", "")) == 1


def test_processes_that_want_one_model_share_a_download(server: HubServer, tmp_path: Path) -> None:
    server.pause = 0.5
    program = (
        "import sys; from pathlib import Path; from mt_photos_ml.models.hub import Hub, ModelRef;"
        "print(Hub(Path(sys.argv[1]), sys.argv[2]).fetch(ModelRef('clip', sys.argv[3], 'visual')))"
    )
    command = [sys.executable, "-c", program, str(tmp_path), server.endpoint, NAME]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=20)[0].strip() for process in running}
    assert answers == {str(tmp_path / CLIP / NAME / "visual" / "model.onnx")}
    assert server.sent.count("visual/model.onnx") == 1


def test_progress_is_told_in_bytes_and_ends_with_all_of_them(server: HubServer, tmp_path: Path) -> None:
    told: list[progress.Download] = []
    server.pause = 0.3
    Hub(tmp_path, server.endpoint, progress=told.append).fetch(DETECTION)
    assert (told[-1].ref, told[-1].done, told[-1].total) == (DETECTION, len(WEIGHTS), len(WEIGHTS))
    assert any(0 < now.done <= len(WEIGHTS) for now in told[:-1])
    assert {now.source for now in told} == {server.endpoint}


def test_the_log_says_how_far_it_is_and_from_where(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_TELL_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "mt_photos_ml"):
        Hub(tmp_path, server.endpoint).fetch(DETECTION)
    lines = [record.getMessage() for record in caplog.records if record.name == "mt_photos_ml"]
    now = r"downloading facial-recognition/buffalo_s/detection: 0\.\d of 0\.3 MB \(\d+%\), \d+\.\d MB/s, from "
    assert re.fullmatch(now + re.escape(server.endpoint), lines[0])
    end = r"downloaded facial-recognition/buffalo_s/detection: 0\.3 MB in \d+ s, from "
    assert re.fullmatch(end + re.escape(server.endpoint), lines[-1])


def test_text_recognition_comes_from_its_own_release_and_goes_on_after_a_cut(
    server: HubServer, tmp_path: Path, ocr: ModelRef
) -> None:
    server.cuts, server.after = 1, 100_000
    hub = Hub(tmp_path, nobody_listens(), ocr_release=server.release_address)
    assert hub.fetch(ocr) == tmp_path / OCR / ocr.name / "recognition" / "model.onnx"
    assert server.ranges == ["bytes=100000-"]
    assert hub.verify(ocr) is None


def test_a_release_that_never_answers_is_given_up_in_seconds(
    server: HubServer, tmp_path: Path, ocr: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 60.0)
    server.silent = True
    began = time.monotonic()
    with pytest.raises(DownloadError, match="no answer in time"):
        Hub(tmp_path, ocr_release=server.release_address).fetch(ocr)
    assert time.monotonic() - began < 15


def test_text_recognition_with_another_checksum_is_refused(server: HubServer, tmp_path: Path, ocr: ModelRef) -> None:
    server.spoiled = True
    with pytest.raises(DownloadError, match="another checksum") as raised:
        Hub(tmp_path, ocr_release=server.release_address).fetch(ocr)
    assert ocr.missing(tmp_path)
    assert f"save {server.release_address}/{OCR_MODELS[ocr.name][ocr.type].path} as {tmp_path}" in str(raised.value)


@carried_here
@pytest.mark.parametrize("kind", ["detection", "recognition"])
def test_what_the_wheel_carries_needs_no_network(tmp_path: Path, kind: str) -> None:
    part = carried_part(kind)
    hub = Hub(tmp_path, ocr_release=nobody_listens())
    model = hub.fetch(part)
    assert model == tmp_path / OCR / part.name / kind / "model.onnx"
    assert hub.verify(part) is None
    assert files(tmp_path / OCR / part.name) == {f"{kind}/model.onnx"}


@carried_here
def test_what_the_wheel_carries_is_used_where_it_lies_if_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    part = carried_part("detection")
    hub = Hub(tmp_path / "file", ocr_release=nobody_listens())
    assert "rapidocr" in hub.fetch(part).parts
    assert hub.fetch(part).is_file()
    assert not hub.invalidate(part, part.files[:1])


@carried_here
def test_the_wheel_is_found_without_importing_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mt_photos_ml.models.hub import Hub, ModelRef;"
        "Hub(Path(sys.argv[1])).fetch(ModelRef('ocr', sys.argv[2], 'detection'));"
        "sys.exit(bool({'rapidocr', 'huggingface_hub'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), carried_part("detection").name], env=environment, check=True
    )


@carried_here
def test_a_model_of_another_task_is_not_in_the_wheel_whatever_its_name() -> None:
    assert file_in_wheel(ModelRef(FACES, carried_part("detection").name, "detection")) is None


def carried_part(kind: str) -> ModelRef:
    """The OCR model that the installed wheel carries: PP-OCRv6 small, or PP-OCRv4 before RapidOCR 3.9."""
    names = (name for name in OCR_MODELS if file_in_wheel(ModelRef(OCR, name, kind)))
    return ModelRef(OCR, next(names), kind)


def test_a_damaged_model_is_discarded_and_fetched_again(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    model = hub.fetch(VISUAL)
    model.write_bytes(WEIGHTS[:1000])
    assert "visual/model.onnx" in (hub.verify(VISUAL) or "")

    assert hub.invalidate(VISUAL, VISUAL.files[:1])
    assert not model.exists()
    assert "visual/model.onnx" not in (tmp_path / CLIP / NAME / "SHA256SUMS").read_text()
    assert hub.fetch(VISUAL).read_bytes() == WEIGHTS
    assert hub.verify(VISUAL) is None


def test_damaged_weights_beside_the_model_go_with_it(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    beside = hub.fetch(VISUAL).with_name("onnx__MatMul_1")
    beside.write_bytes(b"weights beside the mobel")
    assert hub.invalidate(VISUAL, VISUAL.files[:1])
    hub.fetch(VISUAL)
    assert beside.read_bytes() == REPOSITORY["visual/onnx__MatMul_1"]


def test_a_model_of_ones_own_under_a_known_name_gives_way_where_it_is_damaged(
    server: HubServer, tmp_path: Path
) -> None:
    model = tmp_path / FACES / "buffalo_s" / "detection" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"half")
    hub = Hub(tmp_path, server.endpoint)
    assert hub.verify(DETECTION) is None
    assert hub.invalidate(DETECTION, DETECTION.files[:1])
    assert hub.fetch(DETECTION).read_bytes() == WEIGHTS


def test_a_model_that_is_what_was_published_is_not_fetched_over_and_over(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    model = hub.fetch(VISUAL)
    assert not hub.invalidate(VISUAL, VISUAL.files[:1])
    assert model.read_bytes() == WEIGHTS


def test_a_model_of_ones_own_is_used_and_never_touched(server: HubServer, tmp_path: Path) -> None:
    part = ModelRef(FACES, "mine", "detection")
    hub = Hub(tmp_path, server.endpoint)
    with pytest.raises(DownloadError, match=r"mine has no detection/model\.onnx"):
        hub.fetch(part)
    assert server.requests == []
    assert not (tmp_path / FACES).exists()

    model = tmp_path / FACES / "mine" / "detection" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"anything")
    assert hub.fetch(part) == model
    assert hub.verify(part) is None
    assert not hub.invalidate(part, part.files[:1])
    assert model.exists()


def test_verify_names_what_lacks(tmp_path: Path) -> None:
    assert "has no visual/model.onnx, config.json, visual/preprocess_cfg.json" in (Hub(tmp_path).verify(VISUAL) or "")


def test_the_recorded_checksums_are_read_by_sha256sum(server: HubServer, tmp_path: Path) -> None:
    Hub(tmp_path, server.endpoint).fetch(VISUAL)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / CLIP / NAME, check=True)


@carried_here
def test_our_list_of_text_models_agrees_with_rapidocrs() -> None:
    yaml = pytest.importorskip("yaml")
    spec = importlib.util.find_spec("rapidocr")
    assert spec
    assert spec.origin
    listed = Path(spec.origin).with_name("default_models.yaml").read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(listed), dict)
    for name, parts in OCR_MODELS.items():
        for kind, file in parts.items():
            if "PP-OCRv6" in file.path and "PP-OCRv6" not in listed:
                continue
            assert file.sha256 in listed, (name, kind)


# what is said, to the letter


def why(hub: Hub, ref: ModelRef = VISUAL) -> str:
    """What is said of a model that can't be had."""
    with pytest.raises(DownloadError) as raised:
        hub.fetch(ref)
    return str(raised.value)


def test_a_model_that_no_source_serves_is_told_with_what_to_do(
    server: HubServer, other: HubServer, tmp_path: Path, ocr: ModelRef
) -> None:
    server.repositories.clear()
    other.status = 500
    hub = Hub(tmp_path, endpoints=[f"{server.endpoint}/", other.endpoint], npu_file="model.armnn")
    assert hub.endpoints == (server.endpoint, other.endpoint)
    missing = "visual/model.onnx, config.json, visual/preprocess_cfg.json"
    assert why(hub) == (
        f"No source could serve it ({server.endpoint}: HTTP 404 Not Found; "
        f"{other.endpoint}: HTTP 500 Internal Server Error). Let HF_ENDPOINT name a mirror that can be reached, "
        f"or put {missing} of https://huggingface.co/{PATH} into {tmp_path / CLIP / NAME}."
    )
    server.repositories[PATH] = {"config.json": b"{}"}
    server.release.clear()
    assert f"({server.endpoint}: its {PATH} has no visual/model.onnx, visual/preprocess_cfg.json)" in why(
        Hub(tmp_path, server.endpoint)
    )
    release = server.release_address
    address = f"{release}/{OCR_MODELS[ocr.name][ocr.type].path}"
    assert why(Hub(tmp_path, ocr_release=f"{release}/"), ocr) == (
        f"No source could serve it ({release}: HTTP 404 Not Found). Let HTTPS_PROXY name a proxy that reaches it, "
        f"or save {address} as {tmp_path / OCR / ocr.name / 'recognition' / 'model.onnx'}."
    )


def test_of_an_address_no_more_than_the_last_slash_is_left_out(tmp_path: Path) -> None:
    hub = Hub(tmp_path, "https://mirror/X/", ocr_release="https://release/X/")
    assert hub.endpoints == ("https://mirror/X",)
    assert hub.ocr_release == "https://release/X"


def test_a_model_of_ones_own_that_lacks_files_is_told_which(tmp_path: Path) -> None:
    assert why(Hub(tmp_path), ModelRef(CLIP, "mine", "visual")) == (
        f"mine is not a model that can be downloaded, and {tmp_path / CLIP / 'mine'} has no visual/model.onnx, "
        "config.json, visual/preprocess_cfg.json. Put it there, or choose a model by its right name."
    )


def test_a_place_that_cannot_be_written_is_told_with_what_to_do(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / CLIP).write_text("not a folder")
    assert why(Hub(tmp_path, server.endpoint)) == (
        f"It can't be stored: Not a directory ({tmp_path / CLIP / NAME}). Make the folder writable and the disk large "
        "enough, or let MACHINE_LEARNING_CACHE_FOLDER name another."
    )
    lock = tmp_path / "other" / CLIP / NAME / ".lock"
    lock.mkdir(parents=True)
    assert f"It can't be stored: Is a directory ({lock}). " in why(Hub(tmp_path / "other", server.endpoint))


def test_room_for_what_is_not_here_yet_is_enough_and_a_byte_less_is_not(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, DETECTION, WEIGHTS[:100_000])
    for free in (199_999, 200_000):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        hub = Hub(tmp_path, server.endpoint)
        if free == 200_000:
            assert hub.fetch(DETECTION).read_bytes() == WEIGHTS
        else:
            assert why(hub, DETECTION) == (
                f"It needs 0.2 MB, but {tmp_path} has only 0.2 MB free. "
                "Make room, or let MACHINE_LEARNING_CACHE_FOLDER name a folder on a larger disk."
            )
    assert server.ranges == ["bytes=100000-"]


def test_where_nobody_tells_sizes_room_is_not_asked_for(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sizes = False
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    assert Hub(tmp_path, server.endpoint).fetch(VISUAL).read_bytes() == WEIGHTS


# what is on the disk


def test_all_files_are_on_the_disk_before_one_is_in_its_place(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced = tmp_path / CLIP / NAME, set[str]()

    def fsync(number: int) -> None:
        assert files(folder) == {f".partial/visual/{name}" for name in fetched}
        synced.add(str(Path(f"/proc/self/fd/{number}").readlink().relative_to(folder / ".partial" / "visual")))

    monkeypatch.setattr(os, "fsync", fsync)
    fetched = {"config.json", "visual/model.onnx", "visual/onnx__MatMul_1", "visual/preprocess_cfg.json"}
    Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert synced == fetched
    assert files(folder) == {*fetched, "SHA256SUMS"}


@carried_here
def test_what_a_killed_copy_left_is_no_hindrance(tmp_path: Path) -> None:
    part = carried_part("detection")
    stage(tmp_path, part, b"half")
    hub = Hub(tmp_path, ocr_release=nobody_listens())
    hub.fetch(part)
    assert hub.verify(part) is None
    assert files(tmp_path / OCR / part.name) == {"detection/model.onnx"}


def test_damaged_files_are_named_all(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    folder = hub.fetch(VISUAL).parents[1]
    for file in ("config.json", "visual/model.onnx"):
        (folder / file).write_bytes(b"half")
    named = f"config.json, visual/model.onnx in {folder} is not what was published (another SHA-256)"
    assert hub.verify(VISUAL) == named


def test_a_damaged_text_model_is_known_by_our_list(server: HubServer, tmp_path: Path, ocr: ModelRef) -> None:
    hub = Hub(tmp_path, ocr_release=server.release_address)
    model = hub.fetch(ocr)
    assert known_checksums(model.parents[1], ocr) == {"recognition/model.onnx": hashlib.sha256(WEIGHTS).hexdigest()}
    model.write_bytes(b"half")
    assert spoiled_files(model.parents[1], ocr) == ["recognition/model.onnx"]
    assert known_checksums(model.parents[1], ModelRef(OCR, "mine", "recognition")) == {}
    assert not (model.parents[1] / "SHA256SUMS").exists()


def test_a_file_that_is_gone_already_may_be_invalidated(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    (hub.fetch(VISUAL).parents[1] / "config.json").unlink()
    assert hub.invalidate(VISUAL, VISUAL.files[1:])
    assert VISUAL.missing(tmp_path) == list(VISUAL.files[1:])


def test_where_nothing_can_be_removed_nothing_can_be_mended(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(tmp_path, server.endpoint)
    model = hub.fetch(VISUAL)
    model.write_bytes(b"half")
    (model.parents[1] / ".lock").unlink()
    (model.parents[1] / ".lock").mkdir()
    assert not hub.invalidate(VISUAL, VISUAL.files[:1])
    assert model.exists()


def test_the_checksums_of_a_network_are_those_of_its_own_files(tmp_path: Path) -> None:
    names = ["config.json", "visual/model.onnx", "visual/two  spaces", "textual/model.onnx", "README.md"]
    record_checksums(tmp_path, VISUAL, dict.fromkeys(names, "0" * 64))
    assert list(known_checksums(tmp_path, VISUAL)) == ["config.json", "visual/model.onnx", "visual/two  spaces"]
    before = (tmp_path / "SHA256SUMS").stat()
    record_checksums(tmp_path, VISUAL, {"config.json": "0" * 64, "nothing": None})
    assert (tmp_path / "SHA256SUMS").stat() == before
    record_checksums(tmp_path, ModelRef(OCR, "PP-OCRv5_mobile", "detection"), {"detection/model.onnx": "0" * 64})
    assert (tmp_path / "SHA256SUMS").stat() == before


# what a source offers


def test_a_hub_offers_files_with_their_revision_size_and_checksum(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    server.repositories[PATH] |= {"visual/.hidden": b"", "visual/model.rknn": b"", "visual/other.onnx": b""}
    small, weights = b'{"embed_dim": 512}', REPOSITORY["visual/onnx__MatMul_1"]

    def offered(name: str, content: bytes) -> RemoteFile:
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = name.endswith(".onnx")
        sums = (hashlib.sha256(content).hexdigest(), None) if large else (None, sha1)
        return RemoteFile(name, f"{server.endpoint}/{PATH}/resolve/{REVISION}/{name}", len(content), *sums)

    assert offered_files(VISUAL, server.endpoint) == [
        offered("config.json", small),
        offered("visual/model.onnx", WEIGHTS),
        offered("visual/onnx__MatMul_1", weights),
        offered("visual/preprocess_cfg.json", b'{"size": 224}'),
    ]
    assert [file.path for file in offered_files(VISUAL, server.endpoint, "visual/model.armnn")] == [
        "config.json",
        "visual/preprocess_cfg.json",
        "visual/model.armnn",
    ]
    assert {value for name, value in server.said if name == "Authorization"} == {None}
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_the_size_of_a_text_model_is_asked_for(server: HubServer, ocr: ModelRef, knows_ranges: bool) -> None:
    server.ignores_ranges = not knows_ranges
    known = OCR_MODELS[ocr.name][ocr.type]
    address = f"{server.release_address}/{known.path}"
    assert offered_files(ocr, server.release_address) == [
        RemoteFile("recognition/model.onnx", address, len(WEIGHTS), known.sha256)
    ]


# for an NPU


def test_the_npus_file_is_fetched_in_place_of_the_onnx_file(server: HubServer, tmp_path: Path) -> None:
    model = Hub(tmp_path, server.endpoint, npu_file="model.armnn").fetch(VISUAL)

    assert model == tmp_path / CLIP / NAME / "visual" / "model.onnx"
    assert files(tmp_path / CLIP / NAME) == {
        "config.json",
        "visual/model.armnn",
        "visual/preprocess_cfg.json",
        "SHA256SUMS",
    }
    server.status = 500
    assert Hub(tmp_path, server.endpoint, npu_file="model.armnn").fetch(VISUAL) == model


def test_the_file_of_a_board_lies_in_its_own_folder(server: HubServer, tmp_path: Path) -> None:
    server.repositories[PATH]["visual/rknpu/rk3588/model.rknn"] = b"for Rockchip's"
    Hub(tmp_path, server.endpoint, npu_file="rknpu/rk3588/model.rknn").fetch(VISUAL)
    assert (tmp_path / CLIP / NAME / "visual/rknpu/rk3588/model.rknn").read_bytes() == b"for Rockchip's"


def test_a_model_without_a_file_for_the_npu_is_fetched_as_onnx_and_asked_for_once(
    server: HubServer, tmp_path: Path
) -> None:
    hub = Hub(tmp_path, server.endpoint, npu_file="model.armnn")
    for _ in range(3):
        assert hub.fetch(DETECTION).read_bytes() == WEIGHTS
    assert server.sent == ["detection/model.onnx"]
    assert [path for path, _ in server.requests if path.startswith("list")] == ["list immich-app/buffalo_s"]


def test_what_is_there_as_onnx_is_used_where_the_npus_file_cannot_be_had(server: HubServer, tmp_path: Path) -> None:
    model = Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert Hub(tmp_path, nobody_listens(), npu_file="model.armnn").fetch(VISUAL) == model


def test_ocr_has_no_files_for_npus(server: HubServer, tmp_path: Path, ocr: ModelRef) -> None:
    hub = Hub(tmp_path, nobody_listens(), ocr_release=server.release_address, npu_file="model.armnn")
    assert hub.fetch(ocr).read_bytes() == WEIGHTS


def test_a_model_that_is_here_is_asked_for_its_npus_file_once_and_is_whole_without(
    server: HubServer, tmp_path: Path
) -> None:
    model = Hub(tmp_path, server.endpoint).fetch(DETECTION)
    server.requests.clear()
    hub = Hub(tmp_path, server.endpoint, npu_file="model.armnn")
    assert hub.verify(DETECTION) is None
    assert [hub.fetch(DETECTION) for _ in range(3)] == [model] * 3
    assert server.requests == [("list immich-app/buffalo_s", "")]

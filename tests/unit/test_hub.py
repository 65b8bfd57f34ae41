# SPDX-License-Identifier: AGPL-3.0-only
"""Models are downloaded from a mirror that answers, completely or not at all, and only the files that a task needs."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_files import DETECTION, NAME, PATH, REPOSITORY, VISUAL, WEIGHTS, files, nobody_listens, stage
from hub_server import HubServer, sha256
from mt_photos_ml.models import network
from mt_photos_ml.models.catalog import CLIP, FACES, OCR, OCR_MODELS, ModelRef, OcrFile
from mt_photos_ml.models.hub import DownloadError, Hub
from mt_photos_ml.models.sources import file_in_wheel, offered_files
from mt_photos_ml.models.transfer import RemoteFile

pytestmark = pytest.mark.usefixtures("impatient")
RAPIDOCR = importlib.util.find_spec("rapidocr")
carried_here = pytest.mark.skipif(RAPIDOCR is None, reason="RapidOCR, whose wheel carries models, is not installed")
BESIDE = {"config.json", "visual/preprocess_cfg.json"}
ONNX = {"visual/model.onnx", "visual/onnx__MatMul_1"}


@pytest.fixture
def ocr(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> ModelRef:
    """An OCR model that no wheel contains, with the test's own weights."""
    path = OCR_MODELS["PP-OCRv5_mobile"]["recognition"].path
    monkeypatch.setitem(OCR_MODELS, "PP-OCRv5_mobile", {"recognition": OcrFile(path, sha256(WEIGHTS), "")})
    server.release[path] = WEIGHTS
    return ModelRef(OCR, "PP-OCRv5_mobile", "recognition")


def carried_part(kind: str) -> ModelRef:
    """The OCR model in the installed wheel: PP-OCRv6 small, or PP-OCRv4 before RapidOCR 3.9."""
    names = (name for name in OCR_MODELS if file_in_wheel(ModelRef(OCR, name, kind)))
    return ModelRef(OCR, next(names), kind)


def why(hub: Hub, ref: ModelRef = VISUAL) -> str:
    """The message of a download that fails."""
    with pytest.raises(DownloadError) as raised:
        hub.fetch(ref)
    return str(raised.value)


@pytest.mark.parametrize(
    ("ref", "npu", "fetched"),
    [
        (VISUAL, None, BESIDE | ONNX),
        (DETECTION, None, {"detection/model.onnx"}),
        (VISUAL, "rknpu/rk3588/model.rknn", {*BESIDE, "visual/rknpu/rk3588/model.rknn"}),
    ],
)
def test_only_the_files_that_a_part_needs_are_fetched_and_without_a_token(
    server: HubServer,
    tmp_path: Path,
    ref: ModelRef,
    npu: str | None,
    fetched: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    model = Hub(tmp_path, server.endpoint, npu_file=npu).fetch(ref)
    assert server.tokens == {None}
    assert model == tmp_path / ref.group / ref.name / ref.type / "model.onnx"
    assert files(model.parents[1]) == set(server.sent) == fetched
    server.status = 500  # files that exist are not requested
    assert Hub(tmp_path, server.endpoint, npu_file=npu).fetch(ref) == model


def test_a_users_own_file_is_kept(server: HubServer, tmp_path: Path) -> None:
    (config := VISUAL.folder(tmp_path) / "config.json").parent.mkdir(parents=True)
    config.write_text("mine")
    Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert (config.read_text(), "config.json" in server.sent) == ("mine", False)


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_the_size_of_an_ocr_model_comes_from_its_server(server: HubServer, ocr: ModelRef, ignores_ranges: bool) -> None:
    server.ignores_ranges = ignores_ranges
    address = f"{server.release_address}/{OCR_MODELS[ocr.name][ocr.type].path}"
    assert offered_files(ocr, server.release_address) == [
        RemoteFile("recognition/model.onnx", address, len(WEIGHTS), sha256(WEIGHTS))
    ]


def test_a_missing_file_for_the_npu_is_looked_for_once(server: HubServer, tmp_path: Path, ocr: ModelRef) -> None:
    hub = Hub(tmp_path, server.endpoint, ocr_release=server.release_address, npu_file="model.armnn")
    for _ in range(3):
        assert hub.fetch(DETECTION).read_bytes() == WEIGHTS
    assert server.requests == [("list immich-app/buffalo_s", ""), ("file@detection/model.onnx", "")]
    assert hub.fetch(ocr).read_bytes() == WEIGHTS
    later = Hub(tmp_path, nobody_listens(), npu_file="model.armnn")
    assert later.verify(DETECTION) is None
    assert later.fetch(DETECTION).is_file(), "the onnx file is used instead"


FAULTS: dict[str, dict[str, object]] = {
    "refuses": {},
    "never answers": {"silent": True},
    "sends its reply a byte at a time": {"drips": True},
    "is not a hub": {"status": 200},
    "has a damaged small file": {"spoiled": "config.json"},
    "has a damaged large file": {"spoiled": "visual/model.onnx"},
    "answers 416 to every file": {"no_range": True},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_second_mirror_is_used_if_the_first_fails(
    server: HubServer, other: HubServer, tmp_path: Path, fault: str
) -> None:
    vars(server).update(FAULTS[fault])
    first = nobody_listens() if fault == "refuses" else server.endpoint
    began = time.monotonic()
    model = Hub(tmp_path, endpoints=[first, other.endpoint]).fetch(VISUAL)
    assert all((model.parents[1] / name).read_bytes() == REPOSITORY[name] for name in BESIDE | ONNX)
    assert time.monotonic() - began < 15


def test_an_error_names_every_mirror_and_its_answer_and_says_what_to_do(
    server: HubServer, other: HubServer, tmp_path: Path
) -> None:
    server.repositories[PATH] = {"config.json": b"{}"}
    other.silent = True
    closed, unknown = nobody_listens(), "http://nowhere.invalid"
    hub = Hub(tmp_path, endpoints=[f"{server.endpoint}/", other.endpoint, closed, unknown], npu_file="model.armnn")
    assert why(hub) == (
        f"Every source failed ({server.endpoint}: its {PATH} has no visual/model.onnx, "
        f"visual/preprocess_cfg.json; {other.endpoint}: no answer in time; {closed}: connection refused; "
        f"{unknown}: its name can't be resolved (DNS)). Set HF_ENDPOINT to a mirror that can be reached, or put "
        "visual/model.onnx, config.json, visual/preprocess_cfg.json of "
        f"https://huggingface.co/{PATH} into {tmp_path / CLIP / NAME}."
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silent", "no answer in time"),
        ("drips", "no answer in time"),
        ("spoiled", "recognition/model.onnx differs from the published file (checksum)"),
    ],
)
def test_a_download_from_a_failing_ocr_release_ends_within_seconds(
    server: HubServer, tmp_path: Path, ocr: ModelRef, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    monkeypatch.setattr(network, "STALL_SECONDS", 60.0)
    setattr(server, fault, True)
    began, release = time.monotonic(), server.release_address
    by_hand = f"save {release}/{OCR_MODELS[ocr.name][ocr.type].path} as {ocr.path(tmp_path)}."
    said = why(Hub(tmp_path, ocr_release=f"{release}/"), ocr)
    assert all(fact in said for fact in (f"({release}: {reason})", "HTTPS_PROXY", by_hand))
    assert time.monotonic() - began < 15
    assert ocr.missing(tmp_path)


def run_python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Runs the program, with the imports that it needs."""
    imports = "import sys; from pathlib import Path; from mt_photos_ml.models.hub import Hub, ModelRef; "
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", imports + program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@carried_here
@pytest.mark.parametrize("kind", ["detection", "recognition"])
def test_a_model_in_the_wheel_needs_no_network_and_no_slow_import(tmp_path: Path, kind: str) -> None:
    part = carried_part(kind)
    stage(tmp_path, part, b"half")  # by a run that was killed
    program = (
        "Hub(Path(sys.argv[1]), ocr_release=sys.argv[2]).fetch(ModelRef(*sys.argv[3:]));"
        "sys.exit(bool({'rapidocr', 'huggingface_hub'} & set(sys.modules)))"
    )
    with run_python(program, tmp_path, nobody_listens(), OCR, part.name, kind) as process:
        assert process.wait(60) == 0
    assert Hub(tmp_path).verify(part) is None
    assert files(tmp_path / OCR / part.name) == {f"{kind}/model.onnx"}
    assert file_in_wheel(ModelRef(FACES, part.name, kind)) is None


@carried_here
def test_a_model_in_the_wheel_is_used_in_place_if_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    part = carried_part("detection")
    hub = Hub(tmp_path / "file", ocr_release=nobody_listens())
    assert "rapidocr" in hub.fetch(part).parts
    assert hub.fetch(part).is_file()
    assert not hub.invalidate(part, part.files[:1])


@carried_here
def test_our_checksums_of_ocr_models_are_rapidocrs() -> None:
    listed = Path(str(RAPIDOCR and RAPIDOCR.origin)).with_name("default_models.yaml").read_text(encoding="utf-8")
    for name, parts in OCR_MODELS.items():
        for kind, file in parts.items():
            assert file.sha256 in listed or ("PP-OCRv6" in file.path and "PP-OCRv6" not in listed), (name, kind)


def test_threads_and_processes_that_need_a_model_share_its_download(server: HubServer, tmp_path: Path) -> None:
    server.pause = 0.5
    program = (
        "from concurrent.futures import ThreadPoolExecutor; hub = Hub(Path(sys.argv[1]), sys.argv[2]);"
        "print(*set(ThreadPoolExecutor().map(hub.fetch, [ModelRef('clip', sys.argv[3], 'visual')] * 2)))"
    )
    running = [run_python(program, tmp_path, server.endpoint, NAME) for _ in range(2)]
    assert {process.communicate(timeout=20)[0].strip() for process in running} == {str(VISUAL.path(tmp_path))}
    assert server.sent.count("visual/model.onnx") == 1


def test_all_files_are_synced_before_one_is_moved_into_place(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced = tmp_path / CLIP / NAME, set[str]()

    def fsync(number: int) -> None:
        assert files(folder) == {f".partial/visual/{name}" for name in BESIDE | ONNX}
        synced.add(str(Path(f"/proc/self/fd/{number}").readlink().relative_to(folder / ".partial" / "visual")))

    monkeypatch.setattr(os, "fsync", fsync)
    Hub(tmp_path, server.endpoint).fetch(VISUAL)
    assert synced == files(folder) == BESIDE | ONNX


def test_the_model_file_is_moved_into_place_last_and_a_cache_that_cannot_be_written_is_named(
    server: HubServer, tmp_path: Path
) -> None:
    (VISUAL.folder(tmp_path) / "visual" / "preprocess_cfg.json").mkdir(parents=True)
    assert "It can't be stored: Is a directory" in why(Hub(tmp_path, server.endpoint))
    assert not VISUAL.path(tmp_path).exists()
    (cache := tmp_path / "file").write_text("not a folder")
    assert f"It can't be stored: Not a directory ({VISUAL.folder(cache)})" in why(Hub(cache, server.endpoint))


def test_a_download_needs_disk_space_for_the_missing_bytes_only(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, DETECTION, WEIGHTS[:100_000])
    hub, disk = Hub(tmp_path, server.endpoint), SimpleNamespace(free=199_999)
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk)
    assert f"It needs 0.2 MB, but {tmp_path} has only 0.2 MB free" in why(hub, DETECTION)
    assert server.sent == []
    disk.free = 200_000
    assert hub.fetch(DETECTION).read_bytes() == WEIGHTS
    assert server.ranges == ["bytes=100000-"]


@pytest.mark.parametrize("damaged", ["visual/model.onnx", "visual/onnx__MatMul_1"])
def test_a_damaged_file_is_discarded_and_fetched_again(server: HubServer, tmp_path: Path, damaged: str) -> None:
    hub = Hub(tmp_path, server.endpoint)
    folder = hub.fetch(VISUAL).parents[1]
    (folder / "config.json").write_text("mine")
    (folder / damaged).write_bytes(REPOSITORY[damaged][::-1])
    server.requests.clear()
    assert hub.invalidate(VISUAL, VISUAL.files[:1])
    hub.fetch(VISUAL)
    assert (folder / damaged).read_bytes() == REPOSITORY[damaged]
    assert set(server.sent) == {"visual/model.onnx", damaged}
    assert (folder / "config.json").read_text() == "mine"


def test_damaged_files_beside_the_model_are_discarded_even_if_others_are_missing(
    server: HubServer, tmp_path: Path
) -> None:
    hub = Hub(tmp_path, server.endpoint)
    folder = hub.fetch(VISUAL).parents[1]
    (folder / "config.json").unlink()
    (folder / "visual/preprocess_cfg.json").write_bytes(b"half")
    assert hub.invalidate(VISUAL, VISUAL.files[1:])
    assert VISUAL.missing(tmp_path) == list(VISUAL.files[1:])


def test_a_damaged_ocr_model_is_found_by_our_checksums(server: HubServer, tmp_path: Path, ocr: ModelRef) -> None:
    hub = Hub(tmp_path, ocr_release=server.release_address)
    model = hub.fetch(ocr)
    assert hub.verify(ocr) is None
    server.status = 500  # no server has to be asked
    assert not hub.invalidate(ocr, ocr.files)
    model.write_bytes(b"half")
    assert f"recognition/model.onnx in {model.parents[1]} differs" in str(hub.verify(ocr))
    assert hub.invalidate(ocr, ocr.files)
    assert hub.verify(ocr) == f"{model.parents[1]} has no recognition/model.onnx"


@pytest.mark.parametrize("case", ["it is what was published", "no mirror answers", "the cache can't be written"])
def test_a_model_file_is_kept_if_it_is_whole_or_cannot_be_checked_or_replaced(
    server: HubServer, tmp_path: Path, case: str
) -> None:
    hub = Hub(tmp_path, server.endpoint)
    model = hub.fetch(VISUAL)
    if case != "it is what was published":
        model.write_bytes(b"half")
    if case == "no mirror answers":
        server.status = 500
    if case == "the cache can't be written":
        (model.parents[1] / ".lock").unlink()
        (model.parents[1] / ".lock").mkdir()
    assert not hub.invalidate(VISUAL, VISUAL.files[:1])
    assert model.exists()


def test_a_users_own_model_is_used_and_never_changed(server: HubServer, tmp_path: Path) -> None:
    part = ModelRef(FACES, "mine", "detection")
    hub = Hub(tmp_path, server.endpoint)
    assert f"{tmp_path / FACES / 'mine'} has no detection/model.onnx" in why(hub, part)
    assert not (tmp_path / FACES).exists()

    (model := part.path(tmp_path)).parent.mkdir(parents=True)
    model.write_bytes(b"anything")
    assert hub.fetch(part) == model
    assert hub.verify(part) is None
    assert not hub.invalidate(part, part.files)
    assert model.exists()
    assert server.requests == []

# SPDX-License-Identifier: AGPL-3.0-only
"""int8 variants: kept if they answer as the original does, deleted if not, used if the settings say so."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.api import connected, cosine
from demo.graph import Graph
from demo.models import build_clip, build_faces
from demo.pictures import COLOURS, colour_photo, group_photo
from mt_photos_ml.int8.measure import OptimizeError
from mt_photos_ml.int8.optimize import optimize
from mt_photos_ml.models.catalog import TASKS_OF_GROUPS, ModelRef
from mt_photos_ml.models.checks import check_models
from mt_photos_ml.models.choice import in_use
from mt_photos_ml.models.hub import Hub
from mt_photos_ml.models.loader import Loader, ModelKey, ModelUnavailable
from mt_photos_ml.models.variants import variant_of
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.scheduler import CpuScheduler
from mt_photos_ml.settings import Settings, SettingsError
from mt_photos_ml.tasks import clip
from service import KEY, environment, run_command, running

PARTS = "clip_visual", "clip_textual", "face_detection", "face_recognition"
NAMES = [f"{part}_model_name" for part in PARTS]
VISUAL = ModelRef("clip", "mine", "visual")
RECOGNITION = ModelRef("facial-recognition", "mine", "recognition")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for name in ("mine", "half"):
        build_clip(tmp_path / "cache" / "clip" / name)
    for name in ("mine", "faces"):
        build_faces(tmp_path / "cache" / "facial-recognition" / name)
    ModelRef("clip", "half", "visual").path(tmp_path / "cache").write_bytes(b"half")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, 24 faces in four of them, a NAS's thumbnails, and two files that are no photos."""
    folder = tmp_path_factory.mktemp("photos")
    for below in ("below", "previews/@eaDir"):
        (folder / below).mkdir(parents=True)
    for name in list(COLOURS)[:8]:
        colour_photo(name, (320, 240)).save(folder / f"{name}.jpg")
    for i in range(4):
        group_photo((900, 700), range(i * 6, i * 6 + 6))[0].save(folder / "below" / f"group {i}.JPG")
    for i in range(12):
        colour_photo("red", (32, 24)).save(folder / "previews" / "@eaDir" / f"{i}.jpg")
    (folder / "broken.jpg").write_bytes(b"no photo")
    (folder / "film.mp4").write_bytes(b"no photo")
    return folder


def settings(cache: Path, **others: object) -> Settings:
    return Settings.model_validate({"cache_folder": cache, **dict.fromkeys(NAMES, "mine"), **others})


def variables(cache: Path, **others: str) -> dict[str, str]:
    return {**{name.upper(): "mine" for name in NAMES}, "MACHINE_LEARNING_CACHE_FOLDER": str(cache), **others}


def files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_the_service_uses_a_variant_only_if_the_settings_say_so(cache: Path, photos: Path, tmp_path: Path) -> None:
    before = files(cache)
    ended = run_command(variables(cache), "models", "optimize", "mine", photos)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("kept") == 3
    assert "broken.jpg: " in ended.stderr
    assert "previews" not in ended.stderr
    new = {path.rpartition("/")[0] for path in set(files(cache)) - set(before)}
    assert new == {"clip/mine/visual/int8", "clip/mine/textual/int8", "facial-recognition/mine/recognition/int8"}
    assert files(cache).items() >= before.items()

    group = (photos / "below" / "group 1.JPG").read_bytes()
    seen, faces = [], []
    for int8 in ("", "clip, faces"):
        with running(tmp_path, variables(cache, INT8_TASKS=int8)) as service, connected(service.url, KEY) as api:
            seen.append(api.see(group))
            faces.append([face.embedding for face in api.faces(group)])
        log = service.log.read_text()
        assert log.count("(int8) in ") == (2 if int8 else 0), log
    assert 0.99 < cosine(*seen) < 1
    assert len(faces[0]) == 6
    assert all(0.99 < cosine(a, b) < 1 for a, b in zip(*faces, strict=True))


def test_a_variant_that_is_not_good_enough_leaves_no_files(cache: Path, photos: Path) -> None:
    before = files(cache)
    assert all(trial.kept for trial in optimize(settings(cache), "mine", [photos], 1))
    ended = run_command(variables(cache, INT8_MIN_MEAN="1"), "models", "optimize", "mine", photos)
    assert ended.returncode == 1
    assert ended.stdout.count("rejected") == 5  # CLIP's two halves in two ways, faces in one
    assert "nothing kept" in ended.stdout
    assert files(cache) == before
    assert [path for path in cache.rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_outliers_are_quantised_in_blocks(tmp_path: Path) -> None:
    build_clip(tmp_path / "clip" / "mine")
    scale = np.where(np.arange(3072) < 8, 100.0, 1.0)  # all in the first block
    graph = Graph()
    small = graph("Reshape", graph("AveragePool", "image", kernel_shape=[7, 7], strides=[7, 7]), [1, 1, -1])
    weights = np.random.default_rng(0).normal(size=(3072, 64)) / scale[:, None]
    graph("MatMul", graph("Mul", small, scale), weights, out="embedding")
    graph.save(VISUAL.path(tmp_path), {"image": [1, 3, 224, 224]}, {"embedding": [1, 1, 64]})
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).resize((224, 224), Image.Resampling.NEAREST).save(tmp_path / f"{i}.png")
    trials = [trial for trial in optimize(settings(tmp_path), "mine", [tmp_path], 1) if trial.ref == VISUAL]
    assert [(trial.way, trial.kept) for trial in trials] == [("dynamic", False), ("in blocks", True)]
    assert trials[0].mean < 0.97
    assert trials[1].worst > 0.99
    assert trials[1].worst_on.endswith(".png")


@pytest.mark.parametrize("part", [VISUAL, RECOGNITION])
def test_a_missing_or_stale_variant_stops_the_start_and_the_message_says_what_to_do(
    cache: Path, photos: Path, part: ModelRef
) -> None:
    wanted = settings(cache, int8_tasks=frozenset({TASKS_OF_GROUPS[part.group]}))
    what_to_do = rf"INT8_TASKS=\w+: expected an int8 variant of {part}.*`mt-photos-ml models optimize mine PHOTOS`"
    with pytest.raises(SettingsError, match=what_to_do):
        check_models(wanted)
    assert all(trial.kept for trial in optimize(wanted, "mine", [photos], 1))
    check_models(wanted)
    assert {used.group for used in in_use(wanted).values() if used.variant} == {part.group}
    os.utime(part.path(cache))  # as in a copy of the cache: it is still the same model
    check_models(wanted)
    with part.path(cache).open("ab") as model:
        model.write(b" ")
    with pytest.raises(SettingsError, match=f"{part}, which has changed since"):
        check_models(wanted)
    check_models(settings(cache, int8_tasks=wanted.int8_tasks, tasks=frozenset({"ocr"})))


def test_a_damaged_variant_is_named_and_the_original_left_alone(cache: Path) -> None:
    (variant := variant_of(VISUAL.path(cache))).parent.mkdir()
    variant.write_bytes(b"half")
    key = ModelKey(replace(VISUAL, variant="int8"), clip.Visual.load)
    with pytest.raises(ModelUnavailable, match=r"clip/mine/visual .* int8 variant is damaged; .*optimize mine PHOTOS"):
        asyncio.run(Loader(OrtRuntime(1), Hub(cache), CpuScheduler(1)).load(key))
    assert not VISUAL.missing(cache)


@pytest.mark.parametrize(
    ("name", "path", "why"),
    [
        ("mine", "previews", "a measurement needs at least 10 photos, but 0 were found"),
        ("faces", "below/group 1.JPG", "a measurement needs at least 20 faces, but 6 were found"),
        ("buffalo_l", "", "no CLIP or face model buffalo_l"),
        ("mine", "gone", ".*gone does not exist"),
        ("half", "", "visual/model.onnx can't be opened"),
    ],
)
def test_a_model_or_photos_that_cannot_be_measured_are_refused(
    cache: Path, photos: Path, name: str, path: str, why: str
) -> None:
    before = files(cache)
    with pytest.raises(OptimizeError, match=why):
        list(optimize(settings(cache), name, [photos / path], 1))
    assert files(cache) == before


def test_a_package_that_is_not_installed_is_named(cache: Path, photos: Path) -> None:
    without = "import sys; sys.modules['onnx'] = None; from mt_photos_ml.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", without, "models", "optimize", "mine", str(photos)]
    ended = subprocess.run(command, env=environment(variables(cache)), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "pip install onnx onnx-ir" in ended.stderr
    assert "Traceback" not in ended.stderr

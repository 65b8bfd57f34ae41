# SPDX-License-Identifier: AGPL-3.0-only
"""The six networks of the service, and the known models for them, read from models.toml at the import."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

CLIP, FACES, OCR = "clip", "facial-recognition", "ocr"
"""Groups of models: folders in the cache, which upstream names after its tasks."""

CN_CLIP = "cn-clip-"
"""Prefix of a model that `models adopt` imported."""


@dataclass(frozen=True)
class Role:
    """What a network does: half of a CLIP pair, a detector, a recogniser.

    task: its name in TASKS and INT8_TASKS. group: its folder in the cache. name, preload: the fields of Settings that
    hold the model in use and the models to load at the start. beside: further files that it needs, below the model's
    folder.
    """

    task: str
    group: str
    type: str
    name: str
    preload: str
    beside: tuple[str, ...] = ()


_VISUAL_FILES = ("config.json", "visual/preprocess_cfg.json")
_TEXTUAL_FILES = ("config.json", "textual/tokenizer.json", "textual/tokenizer_config.json")
ROLES = (
    Role("ocr", OCR, "detection", "ocr_model_name", "preload_ocr_detection"),
    Role("ocr", OCR, "recognition", "ocr_model_name", "preload_ocr_recognition"),
    Role("clip", CLIP, "visual", "clip_visual_model_name", "preload_clip_visual", _VISUAL_FILES),
    Role("clip", CLIP, "textual", "clip_textual_model_name", "preload_clip_textual", _TEXTUAL_FILES),
    Role("faces", FACES, "detection", "face_detection_model_name", "preload_face_detection"),
    Role("faces", FACES, "recognition", "face_recognition_model_name", "preload_face_recognition"),
)
TASKS_OF_GROUPS = {role.group: role.task for role in ROLES}
_BESIDE = {(role.group, role.type): role.beside for role in ROLES}


@dataclass(frozen=True)
class ModelRef:
    """Which network of which model: `clip/NAME/visual`, `facial-recognition/NAME/detection`, `ocr/NAME/recognition`, …

    variant: the folder beside the model file whose file is opened instead, such as "int8".
    """

    group: str
    name: str
    type: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.group}/{self.name}/{self.type}"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it needs, relative to the model's folder, the model file first."""
        return (f"{self.type}/model.onnx", *_BESIDE[self.group, self.type])

    @property
    def is_known(self) -> bool:
        """Whether it can be downloaded."""
        return self.name in KNOWN[self.group]

    @property
    def sha256(self) -> str | None:
        """The model file's checksum, if it is known without asking a source: for OCR models."""
        return OCR_MODELS[self.name][self.type].sha256 if self.group == OCR and self.is_known else None

    def folder(self, cache: Path) -> Path:
        return cache / self.group / self.name

    def path(self, cache: Path) -> Path:
        """The model file."""
        return self.folder(cache) / self.files[0]

    def missing(self, cache: Path) -> list[str]:
        """The files that it needs and this cache lacks."""
        return [file for file in self.files if not (self.folder(cache) / file).is_file()]


@dataclass(frozen=True)
class Clip:
    """A CLIP pair. length: of its vectors. languages: "en" or "many". space: vectors of one space can be compared."""

    length: int
    languages: str
    space: str


@dataclass(frozen=True)
class OcrFile:
    """A file of RapidOCR's list: its path there, its checksum, and its name in the wheel if the wheel contains it."""

    path: str
    sha256: str
    in_wheel: str


_MODELS = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))
_OCR = _MODELS["ocr"]

CLIP_MODELS = {
    name: Clip(pairs["length"], pairs["languages"], pairs.get("fits", name))
    for pairs in _MODELS["clip"]
    for name in pairs["names"]
}
OCR_RELEASE: str = _OCR["release"]
OCR_MODELS = {
    name: {
        type: OcrFile(path, _OCR["sha256"][path], _OCR["wheel"].get(path, Path(path).name))
        for type, path in zip(("detection", "recognition"), paths, strict=True)
    }
    for name, paths in _OCR["models"].items()
}
KNOWN: dict[str, tuple[str, ...]] = {
    CLIP: tuple(CLIP_MODELS),
    FACES: tuple(_MODELS["faces"]["names"]),
    OCR: tuple(OCR_MODELS),
}

# SPDX-License-Identifier: AGPL-3.0-only
"""The settings: environment variables, read once and checked at the start."""

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_KEY = "mt_photos_ai_extra"
NO_KEY = "no-key"
KEY_FILE = "API_AUTH_KEY_FILE"
TASKS = ("ocr", "clip", "faces")
INT8_TASKS = ("clip", "faces")
DEFAULT_CLIP = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"

_FORBIDDEN = str.maketrans(":\\/", "___", ".")
_LOG_LEVELS_OF_THE_BASE = {"verbose": "debug", "log": "info", "warn": "warning", "critical": "error"}


class SettingsError(ValueError):
    """One line for every variable that can't be used: its name, its value, what is expected."""


def clean_name(name: str) -> str:
    """The folder of a model in the cache, by the base image's rule: `immich-app/RN50::openai` is `RN50__openai`."""
    return name.rsplit("/", 1)[-1].translate(_FORBIDDEN)


def _expect(what: str, is_usable: Callable[[str], object]) -> AfterValidator:
    """Refuses what is not usable in words; whatever the check raises means no."""

    def check(value: str) -> str:
        try:
            usable = is_usable(value)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(what)
        return value

    return AfterValidator(check)


def _is_address(value: str) -> bool:
    address = urlsplit(value)
    return bool(address.scheme in ("http", "https") and address.hostname and address.port != 0 and " " not in value)


def _split(known: Collection[str], expected: str, value: object) -> object:
    """The names in a list with commas. Raises ValueError where one is not known."""
    if isinstance(value, str):
        value = frozenset(name.strip().lower() for name in value.split(",") if name.strip())
    if not isinstance(value, frozenset) or not value <= set(known):
        raise ValueError(expected)
    return value


def _absolute(value: Path) -> Path:
    try:
        folder = value.expanduser().absolute()
    except RuntimeError:
        raise ValueError("a folder; nobody here has that name") from None
    if folder.exists() and not folder.is_dir():
        raise ValueError("a folder, not a file")
    return folder


_TASKS = f"one or more of {', '.join(TASKS)}, with commas between"
_INT8 = f"one or both of {', '.join(INT8_TASKS)}, with a comma between"

Key = Annotated[
    str,
    _expect(
        "a key without spaces around it and without line breaks", lambda key: key == key.strip() and key.isprintable()
    ),
]
ModelName = Annotated[str, AfterValidator(lambda name: clean_name(name.strip())), _expect("the name of a model", bool)]
Score = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["FP32", "FP16"]
Names = frozenset[str]
Tasks = Annotated[Names, NoDecode, BeforeValidator(partial(_split, TASKS, _TASKS)), _expect(_TASKS, len)]
Int8Tasks = Annotated[Names, NoDecode, BeforeValidator(partial(_split, INT8_TASKS, _INT8))]
Card = Annotated[str, _expect("the number of a graphics card, such as 0", str.isdecimal)]
Cards = Annotated[
    str,
    _expect("the numbers of graphics cards, such as 0,1", lambda v: all(n.strip().isdecimal() for n in v.split(","))),
]
Address = Annotated[
    str, _expect("an address such as https://hf-mirror.com", _is_address), AfterValidator(lambda v: v.rstrip("/"))
]
Folder = Annotated[Path, AfterValidator(_absolute)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: _LOG_LEVELS_OF_THE_BASE.get(str(value).lower(), str(value).lower())),
]


class Settings(BaseSettings):
    """What the environment says. An empty variable counts as unset, but for the key, where it is a mistake."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True)

    api_auth_key: Key = Field(DEFAULT_KEY, validation_alias="API_AUTH_KEY", repr=False)
    http_port: int = Field(8060, ge=1, le=65535, validation_alias="HTTP_PORT")
    tasks: Tasks = Field(frozenset(TASKS), validation_alias="TASKS")
    max_upload_mb: int = Field(128, ge=1, le=4096, validation_alias="MAX_UPLOAD_MB")

    ocr_model_name: ModelName = Field("PP-OCRv6_small", validation_alias="OCR_MODEL_NAME")
    ocr_min_score: Score = Field(0.5, validation_alias="OCR_MIN_SCORE")
    clip_visual_model_name: ModelName = Field(DEFAULT_CLIP, validation_alias="CLIP_VISUAL_MODEL_NAME")
    clip_textual_model_name: ModelName = Field(DEFAULT_CLIP, validation_alias="CLIP_TEXTUAL_MODEL_NAME")
    clip_language: str | None = Field(None, validation_alias="CLIP_LANGUAGE")
    face_detection_model_name: ModelName = Field("buffalo_l", validation_alias="FACE_DETECTION_MODEL_NAME")
    face_recognition_model_name: ModelName = Field("buffalo_l", validation_alias="FACE_RECOGNITION_MODEL_NAME")
    face_min_score: Score = Field(0.65, validation_alias="FACE_MIN_SCORE")

    hf_endpoint: Address | None = Field(None, validation_alias="HF_ENDPOINT")
    cache_folder: Folder = Field(Path("~/.cache/mt-photos-ml"), validation_alias="MACHINE_LEARNING_CACHE_FOLDER")
    model_ttl: int | None = Field(None, ge=0, validation_alias="MACHINE_LEARNING_MODEL_TTL")
    request_threads: int = Field(
        default_factory=lambda: os.cpu_count() or 4, ge=1, le=256, validation_alias="MACHINE_LEARNING_REQUEST_THREADS"
    )
    model_intra_op_threads: int = Field(0, ge=0, le=256, validation_alias="MACHINE_LEARNING_MODEL_INTRA_OP_THREADS")
    prepare_models: bool = Field(True, validation_alias="PREPARE_MODELS")
    preload_clip_visual: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__CLIP__VISUAL")
    preload_clip_textual: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL")
    preload_face_detection: str | None = Field(
        None, validation_alias="MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION__DETECTION"
    )
    preload_face_recognition: str | None = Field(
        None, validation_alias="MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION__RECOGNITION"
    )
    preload_ocr_detection: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__OCR__DETECTION")
    preload_ocr_recognition: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__OCR__RECOGNITION")
    int8_tasks: Int8Tasks = Field(frozenset(), validation_alias="INT8_TASKS")
    int8_min_mean: Score = Field(0.99, validation_alias="INT8_MIN_MEAN")
    int8_min_worst: Score = Field(0.98, validation_alias="INT8_MIN_WORST")
    device: str = Field("", validation_alias="DEVICE")
    device_id: Card = Field("0", validation_alias="MACHINE_LEARNING_DEVICE_ID")
    device_ids: Cards | None = Field(None, validation_alias="MACHINE_LEARNING_DEVICE_IDS")
    openvino_precision: Precision = Field("FP32", validation_alias="MACHINE_LEARNING_OPENVINO_PRECISION")
    rocm_precision: Precision = Field("FP32", validation_alias="MACHINE_LEARNING_ROCM_PRECISION")
    ann: bool = Field(True, validation_alias="MACHINE_LEARNING_ANN")
    rknn: bool = Field(True, validation_alias="MACHINE_LEARNING_RKNN")
    workers: int = Field(1, ge=1, le=64, validation_alias="MACHINE_LEARNING_WORKERS")
    worker_timeout: int = Field(300, ge=1, le=86400, validation_alias="MACHINE_LEARNING_WORKER_TIMEOUT")
    immich_host: str = Field("[::]", validation_alias="IMMICH_HOST")
    immich_port: int = Field(3003, ge=1, le=65535, validation_alias="IMMICH_PORT")
    immich_api: Literal["key", "open", "off"] = Field("key", validation_alias="IMMICH_API")
    log_level: LogLevel = Field("info", validation_alias="IMMICH_LOG_LEVEL")
    log_format: Literal["text", "json"] = Field("text", validation_alias="LOG_FORMAT")
    metrics: Literal["key", "open", "off"] = Field("key", validation_alias="METRICS")

    @property
    def open_to_all(self) -> bool:
        """Whether requests need no key."""
        return self.api_auth_key == NO_KEY

    @property
    def key_warning(self) -> str | None:
        """What is wrong with the key on a port that others can reach."""
        if self.open_to_all:
            return "there is no key: whoever reaches the port can use the service; set API_AUTH_KEY"
        if self.api_auth_key == DEFAULT_KEY:
            return "the key is the default one, which everybody knows; set API_AUTH_KEY"
        return None

    @property
    def demo(self) -> bool:
        """Whether a model in use is one of the demo's, which recognise drawings and colours only."""
        names = (self.clip_visual_model_name, self.face_detection_model_name, self.face_recognition_model_name)
        return any(name.startswith("demo-") for name in names)


def variable(field: str) -> str:
    """The environment variable of a field."""
    return str(Settings.model_fields[field].validation_alias)


def load() -> Settings:
    """The settings of this process. Raises SettingsError, one line a variable."""
    if os.environ.get("API_AUTH_KEY", "-").strip() == "" and not os.environ.get(KEY_FILE):
        raise SettingsError(f'API_AUTH_KEY="": expected a key; for a service without one set it to {NO_KEY}')
    try:
        return Settings(**_key_of_file())
    except ValidationError as error:
        raise SettingsError("\n".join(map(_line, error.errors()))) from None


def _key_of_file() -> dict[str, Any]:
    """The key, where a file holds it, such as one of Docker's secrets."""
    path = os.environ.get(KEY_FILE)
    if not path:
        return {}
    if os.environ.get("API_AUTH_KEY"):
        raise SettingsError(f"{KEY_FILE}={path}: expected to be the only one that names a key; API_AUTH_KEY is set too")
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{KEY_FILE}={path}: expected a file with the key: {_reason(error)}") from None
    if not key:
        raise SettingsError(f"{KEY_FILE}={path}: expected a file with the key; it is empty")
    return {"API_AUTH_KEY": key}


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not text"


def _line(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not error["loc"]:
        return message
    if error["loc"][0] == "API_AUTH_KEY":  # a key has no place in a log, a wrong one neither
        return f"API_AUTH_KEY: expected {message}"
    value = str(error["input"])
    return f"{error['loc'][0]}={value if value.isprintable() else repr(value)}: expected {message}"

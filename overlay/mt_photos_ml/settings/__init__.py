# SPDX-License-Identifier: AGPL-3.0-only
"""The settings: environment variables, read once and checked at the start."""

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasGenerator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from . import values

DEFAULT_KEY = "mt_photos_ai_extra"
NO_KEY = "no-key"
KEY_FILE = "API_AUTH_KEY_FILE"
DEFAULT_CLIP = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"
_PRELOAD_FACES = "MACHINE_LEARNING_PRELOAD__FACIAL_RECOGNITION__"
_IN_CAPITALS = AliasGenerator(validation_alias=str.upper)
_HOST = re.sub(r"[^\w.-]", "-", socket.gethostname(), flags=re.A)[:64] or "host"


class SettingsError(ValueError):
    """Settings can't be used; the message has one line for each: its name, its value, what is expected."""


class Settings(BaseSettings):
    """The settings. A text describes the fields above it, English / 中文, and goes into docs/settings*.md."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True, alias_generator=_IN_CAPITALS
    )

    api_auth_key: values.Key = Field(DEFAULT_KEY, repr=False)
    """the key that MT Photos sends; `no-key` for none / MT Photos 发送的密钥；`no-key` 表示不要密钥"""
    http_port: int = Field(8060, ge=1, le=65535)
    """the port without Docker; ignored in the image / 不用 Docker 时监听的端口；在镜像中不起作用"""
    tasks: values.Tasks = frozenset(values.TASKS)
    """what the service recognises; other tasks answer 404 / 提供哪些识别；没列出的返回 404"""
    max_upload_mb: int = Field(128, ge=1, le=4096)
    """a larger upload gets 413 before it is read / 更大的上传在读取之前就返回 413"""
    ocr_model_name: values.ModelName = "PP-OCRv6_small"
    """see [models](models.md); in the image `PP-OCRv5_mobile` / 见[模型](models.zh-CN.md)；镜像用 `PP-OCRv5_mobile`"""
    ocr_min_score: values.Score = 0.5
    """lines read with less confidence are left out / 置信度更低的文字不返回"""
    clip_visual_model_name: values.ModelName = DEFAULT_CLIP
    clip_textual_model_name: values.ModelName = DEFAULT_CLIP
    """always the same model in both / 两项必须是同一个模型"""
    clip_language: str | None = None
    """the language of searches, for nllb models, such as `zh-CN`; if unset, guessed from the script
    只用于 nllb 模型：搜索的语言，如 `zh-CN`；不设置则按文字判断"""
    face_detection_model_name: values.ModelName = "buffalo_l"
    face_recognition_model_name: values.ModelName = "buffalo_l"
    """or `antelopev2`, `buffalo_m`, `buffalo_s` / 也可用 `antelopev2`、`buffalo_m`、`buffalo_s`"""
    face_min_score: values.Score = 0.65
    """faces found with less confidence are left out / 置信度更低的人脸不返回"""
    hf_endpoint: values.Address | None = None
    """where to download models, instead of huggingface.co and hf-mirror.com
    模型的下载地址，代替 huggingface.co 和 hf-mirror.com"""
    cache_folder: values.Folder = Field(Path("~/.cache/mt-photos-ml"), validation_alias="MACHINE_LEARNING_CACHE_FOLDER")
    """where models are kept; in the image `/cache` / 模型存放的目录；镜像中为 `/cache`"""
    model_ttl: int | None = Field(None, ge=0, validation_alias="MACHINE_LEARNING_MODEL_TTL")
    """seconds until an idle model is unloaded (60; with a graphics card 300); `0`: never
    模型空闲多少秒后卸载（60；用显卡时 300）；`0` 表示不卸载"""
    prepare_models: bool = True
    """on the processor, keep a second form of each model that loads faster and needs less memory, see [speed](speed.md)
    用 CPU 时，把每个模型另存为加载快、占内存少的形式，见[速度与内存](speed.zh-CN.md)"""
    request_threads: values.Threads = Field(
        os.cpu_count() or 4, ge=1, validation_alias="MACHINE_LEARNING_REQUEST_THREADS"
    )
    """photos processed at the same time (number of cores) / 同时处理几张照片（不设置则等于核数）"""
    model_intra_op_threads: values.Threads = Field(0, ge=0, validation_alias="MACHINE_LEARNING_MODEL_INTRA_OP_THREADS")
    """threads per inference on the processor (`0`: the cores, at most 4) / CPU 一次推理的线程数（`0`：核数，最多 4）"""
    int8_tasks: values.Int8Tasks = frozenset()
    """`clip`, `faces` or both: use the int8 variants that `models optimize` kept, see [speed](speed.md)
    `clip`、`faces` 或两者：使用 `models optimize` 保留下来的 int8 版本，见[速度与内存](speed.zh-CN.md)"""
    int8_min_mean: values.Score = 0.99
    int8_min_worst: values.Score = 0.98
    """the mean and the worst cosine to the original that an int8 variant must reach to be kept
    int8 版本与原模型的余弦相似度，平均值和最差值至少达到多少才保留"""
    preload_clip_textual: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL")
    preload_clip_visual: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__CLIP__VISUAL")
    preload_face_detection: str | None = Field(None, validation_alias=f"{_PRELOAD_FACES}DETECTION")
    preload_face_recognition: str | None = Field(None, validation_alias=f"{_PRELOAD_FACES}RECOGNITION")
    preload_ocr_detection: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__OCR__DETECTION")
    preload_ocr_recognition: str | None = Field(None, validation_alias="MACHINE_LEARNING_PRELOAD__OCR__RECOGNITION")
    """the name of the model in use: it is loaded at the start and stays loaded, so that no search waits for it
    填正在使用的模型名称，启动时就加载并一直保留，搜索不用等"""
    ocr_device: values.DeviceName = "auto"
    clip_device: values.DeviceName = "auto"
    face_device: values.DeviceName = "auto"
    """what a task runs on, see [devices](devices.md); `auto`: a device that is correct and faster than the processor
    各项识别用什么设备，见[设备](devices.zh-CN.md)；`auto`：结果正确且比 CPU 快的设备"""
    device_id: values.Card = Field("0", validation_alias="MACHINE_LEARNING_DEVICE_ID")
    """which graphics card, if there are several / 有多块显卡时用哪一块"""
    openvino_precision: values.Precision = Field("FP32", validation_alias="MACHINE_LEARNING_OPENVINO_PRECISION")
    """`FP16`: faster and less exact on an Intel GPU; text is always read in `FP32`
    `FP16`：在 Intel 显卡上更快，精度略低；文字始终用 `FP32` 识别"""
    rocm_precision: values.Precision = Field("FP32", validation_alias="MACHINE_LEARNING_ROCM_PRECISION")
    """`FP16`: the same on an AMD card, if onnxruntime has MIGraphX / `FP16`：AMD 显卡同上，需要 MIGraphX"""
    workers: int = Field(1, ge=1, le=64, validation_alias="MACHINE_LEARNING_WORKERS")
    """number of processes; they share the cores / 服务的进程数；各进程平分 CPU 核"""
    device_ids: values.Cards | None = Field(None, validation_alias="MACHINE_LEARNING_DEVICE_IDS")
    """graphics cards, assigned to the processes in turn, such as `0,1` / 依次分给各进程的显卡，如 `0,1`"""
    queue_timeout: int = Field(0, ge=0, le=3600)
    """seconds that a photo or a search may wait in the queue; after that it gets 503; `0`: no limit
    照片或搜索最多排队多少秒，超过则返回 503；`0` 表示不限"""
    drain: int = Field(0, ge=0, le=20)
    """seconds after the stop signal in which photos are still accepted; `/ready` is 503, see [scaling](scaling.md)
    收到停止信号后还接收照片的秒数，期间 `/ready` 返回 503，见[多台机器](scaling.zh-CN.md)"""
    instance_name: values.InstanceName = _HOST
    """the name of this service in `/check`, the page, the log, the metrics and the reply header `X-Instance`
    本服务的名称，出现在 `/check`、网页、日志、指标和响应头 `X-Instance` 中"""
    worker_timeout: int = Field(300, ge=1, le=86400, validation_alias="MACHINE_LEARNING_WORKER_TIMEOUT")
    """seconds until a process that hangs is replaced / 进程卡住多少秒后，换一个新进程"""
    ann: bool = Field(True, validation_alias="MACHINE_LEARNING_ANN")
    rknn: bool = Field(True, validation_alias="MACHINE_LEARNING_RKNN")
    """`false` turns the NPU off in the images `armnn`, `rknn` / 在 `armnn` 和 `rknn` 镜像中：`false` 表示不用 NPU"""
    immich_host: str = "[::]"
    immich_port: int = Field(3003, ge=1, le=65535)
    """the address and port in the image; without IPv6 `0.0.0.0` / 镜像中监听的地址和端口；没有 IPv6 时用 `0.0.0.0`"""
    device: str = ""
    """the device that the image is for; don't change it / 镜像对应的设备；不要改"""
    immich_api: values.Access = "key"
    """Immich's own `/predict` in the image: `key` needs the key, `open` none, or `off`
    镜像中 Immich 自己的 `/predict`：`key` 要密钥，`open` 不要，`off` 关闭"""
    log_level: values.LogLevel = Field("info", validation_alias="IMMICH_LOG_LEVEL")
    """`debug`, `info`, `warning` or `error` / `debug`、`info`、`warning` 或 `error`"""
    log_format: values.LogFormat = "text"
    """`json`: one JSON object a line, see [monitoring](monitoring.md)
    `json`：每行一个 JSON 对象，见[查看运行情况](monitoring.zh-CN.md)"""
    metrics: values.Access = "key"
    """`/metrics`: `key` needs the key, `open` none, or `off` / `/metrics`：`key` 要密钥，`open` 不要，`off` 关闭"""

    @property
    def open_to_all(self) -> bool:
        """Whether requests need no key."""
        return self.api_auth_key == NO_KEY

    @property
    def key_warning(self) -> str | None:
        """What is wrong with the key on a port that others can reach."""
        if self.open_to_all:
            return "there is no API key: anyone who can reach the port can use the service; set API_AUTH_KEY"
        is_default = self.api_auth_key == DEFAULT_KEY
        return "the API key is the default one, which is public; set API_AUTH_KEY" if is_default else None


def variable(field: str) -> str:
    """The environment variable of a field."""
    return str(Settings.model_fields[field].validation_alias)


def load(also: Mapping[str, Any] | None = None) -> Settings:
    """Reads the settings from the environment and from `also`. Raises SettingsError with one line a variable."""
    if os.environ.get("API_AUTH_KEY", "-").strip() == "" and not os.environ.get(KEY_FILE):
        raise SettingsError(f'API_AUTH_KEY="": expected a key; to run without one, set it to {NO_KEY}')
    try:
        return Settings(**_key_of_file(), **(also or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(map(_line, error.errors()))) from None


def _key_of_file() -> dict[str, Any]:
    """The key from the file that API_AUTH_KEY_FILE names, such as a Docker secret."""
    if not (path := os.environ.get(KEY_FILE)):
        return {}
    if os.environ.get("API_AUTH_KEY"):
        raise SettingsError(f"{KEY_FILE}={path}: expected to be set alone; API_AUTH_KEY is set too")
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", "it is not text")
        raise SettingsError(f"{KEY_FILE}={path}: expected a file with the key: {why}") from None
    if not key:
        raise SettingsError(f"{KEY_FILE}={path}: expected a file with the key; it is empty")
    return {"API_AUTH_KEY": key}


def _line(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not error["loc"]:
        return message
    if error["loc"][0] == "API_AUTH_KEY":  # a key must not appear in a log, even a wrong one
        return f"API_AUTH_KEY: expected {message}"
    value = str(error["input"])
    return f"{error['loc'][0]}={value if value.isprintable() else repr(value)}: expected {message}"

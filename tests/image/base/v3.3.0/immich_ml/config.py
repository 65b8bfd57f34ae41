# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: the settings, the log and gunicorn's worker."""

import logging
import os
import warnings
from pathlib import Path

from pydantic import BaseModel
from pydantic_settings import BaseSettings, SettingsConfigDict

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from uvicorn.workers import UvicornWorker


class Encoders(BaseModel):
    textual: str | None = None
    visual: str | None = None


class Stages(BaseModel):
    detection: str | None = None
    recognition: str | None = None


class Preload(BaseModel):
    clip: Encoders = Encoders()
    facial_recognition: Stages = Stages()
    ocr: Stages = Stages()


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="MACHINE_LEARNING_", env_nested_delimiter="__")

    cache_folder: Path = Path.home() / ".cache" / "immich_ml"
    model_ttl: int = 300
    model_ttl_poll_s: int = 10
    workers: int = 1
    worker_timeout: int = 300
    http_keepalive_timeout_s: int = 2
    request_threads: int = len(os.sched_getaffinity(0))
    model_intra_op_threads: int = 0
    model_inter_op_threads: int = 0
    model_revision: str = ""
    rocm_precision: str = "FP32"
    preload: Preload | None = None


class NonPrefixedSettings(BaseSettings):
    immich_host: str = "[::]"
    immich_port: int = 3003
    immich_log_level: str = "info"


settings = Settings()
non_prefixed_settings = NonPrefixedSettings()

log = logging.getLogger("ml.log")
log.setLevel(logging.getLevelNamesMapping().get(non_prefixed_settings.immich_log_level.upper(), logging.INFO))


def clean_name(name: str) -> str:
    """The folder of a model: `immich-app/RN50::openai` is `RN50__openai`."""
    return name.rpartition("/")[2].replace(":", "_").replace("\\", "_").replace(".", "")


class CustomUvicornWorker(UvicornWorker):
    """Uvicorn in gunicorn."""

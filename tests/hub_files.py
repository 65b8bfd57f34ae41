# SPDX-License-Identifier: AGPL-3.0-only
"""A model repository as the hub serves it, and fixtures for tests that download from it."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import HubServer
from mt_photos_ml.models import network, transfer
from mt_photos_ml.models.catalog import CLIP, FACES, ModelRef

NAME = "ViT-B-32__openai"
VISUAL = ModelRef(CLIP, NAME, "visual")
DETECTION = ModelRef(FACES, "buffalo_s", "detection")
WEIGHTS = os.urandom(300_000)
REPOSITORY = {
    ".gitattributes": b"*.onnx filter=lfs",
    "README.md": b"# a model",
    "config.json": b'{"embed_dim": 512}',
    "visual/model.onnx": WEIGHTS,
    "visual/onnx__MatMul_1": b"weights beside the model",
    "visual/preprocess_cfg.json": b'{"size": 224}',
    "visual/other.onnx": b"for another runtime",
    "visual/model.armnn": b"for another runtime",
    "visual/rknpu/rk3588/model.rknn": b"for another runtime",
    "textual/model.onnx": WEIGHTS[::-1],
    "textual/tokenizer.json": b"{}",
    "textual/tokenizer_config.json": b"{}",
    "textual/added_tokens": b"",
}
PATH = f"immich-app/{NAME}"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repositories[PATH] = dict(REPOSITORY)
        server.repositories["immich-app/buffalo_s"] = {"detection/model.onnx": WEIGHTS, "recognition/model.onnx": b""}
        yield server


@pytest.fixture
def other() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repositories[PATH] = dict(REPOSITORY)
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (network, "ANSWER_SECONDS", 2.0),
        (network, "STALL_SECONDS", 1.0),
        (transfer, "PAUSE_SECONDS", 0.01),
    ):
        monkeypatch.setattr(module, name, seconds)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def nobody_listens() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def stage(cache: Path, part: ModelRef, content: bytes) -> None:
    """Writes a partial download, as an interrupted run leaves it."""
    staged = cache / part.group / part.name / ".partial" / part.type / part.files[0]
    staged.parent.mkdir(parents=True)
    staged.write_bytes(content)

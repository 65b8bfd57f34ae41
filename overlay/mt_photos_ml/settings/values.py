# SPDX-License-Identifier: AGPL-3.0-only
"""The types of settings, each with its check and a description of what is expected."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

TASKS = ("ocr", "clip", "faces")
INT8_TASKS = ("clip", "faces")
_FORBIDDEN = str.maketrans(":\\/", "___", ".")
_LOG_LEVELS_OF_THE_BASE = {"verbose": "debug", "log": "info", "warn": "warning", "critical": "error"}

T = TypeVar("T")


def clean_name(name: str) -> str:
    """A model's folder in the cache, named by the base image's rule: `RN50__openai` for `immich-app/RN50::openai`."""
    return name.rsplit("/", 1)[-1].translate(_FORBIDDEN)


def _expect(what: str, is_usable: Callable[[Any], object]) -> AfterValidator:
    """Refuses a value for which is_usable returns false or raises ValueError. what: describes what is expected."""

    def check(value: T) -> T:
        with suppress(ValueError):
            if is_usable(value):
                return value
        raise ValueError(what)

    return AfterValidator(check)


def _is_address(value: str) -> bool:
    address = urlsplit(value)
    return bool(address.scheme in ("http", "https") and address.hostname and address.port != 0 and " " not in value)


def _split(value: object) -> object:
    """Splits a list of names with commas between."""
    return {name.strip().lower() for name in value.split(",") if name.strip()} if isinstance(value, str) else value


def _absolute(value: Path) -> Path:
    try:
        folder = value.expanduser().absolute()
    except RuntimeError:
        raise ValueError("a folder; this system has no user of that name") from None
    if folder.exists() and not folder.is_dir():
        raise ValueError("a folder, not a file")
    return folder


Key = Annotated[
    str, _expect("a key without spaces around it and without line breaks", lambda k: k == k.strip() and k.isprintable())
]
ModelName = Annotated[str, AfterValidator(lambda n: clean_name(n.strip())), _expect("the name of a model", str.encode)]
Threads = Annotated[int, Field(le=256)]
Score = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["FP32", "FP16"]
LogFormat = Literal["text", "json"]
Access = Literal["key", "open", "off"]
DeviceName = Annotated[
    Literal["auto", "cpu", "cuda", "rocm", "migraphx", "openvino:gpu", "openvino:cpu", "openvino:npu", "coreml"],
    BeforeValidator(str.lower),
]
Names = Annotated[frozenset[str], NoDecode, BeforeValidator(_split)]
Tasks = Annotated[
    Names, _expect(f"one or more of {', '.join(TASKS)}, with commas between", lambda names: names and names <= {*TASKS})
]
Int8Tasks = Annotated[Names, _expect(f"one or both of {', '.join(INT8_TASKS)}", {*INT8_TASKS}.issuperset)]
Card = Annotated[str, _expect("the number of a graphics card, such as 0", str.isdecimal)]
Cards = Annotated[
    str, _expect("the numbers of graphics cards, such as 0,1", re.compile(r"\s*\d+\s*(,\s*\d+\s*)*").fullmatch)
]
Address = Annotated[
    str, _expect("an address such as https://hf-mirror.com", _is_address), AfterValidator(lambda v: v.rstrip("/"))
]
Folder = Annotated[Path, AfterValidator(_absolute), _expect("a folder with a name in UTF-8", lambda f: str(f).encode())]
InstanceName = Annotated[
    str, _expect("up to 64 letters of a to z, digits, `.`, `-` or `_`", re.compile(r"[\w.-]{1,64}", re.A).fullmatch)
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: _LOG_LEVELS_OF_THE_BASE.get(str(value).lower(), str(value).lower())),
]

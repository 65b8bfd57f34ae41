# SPDX-License-Identifier: AGPL-3.0-only
"""Compares two releases of the base image, and separates changes in what we rely on from all others."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .docker import Contents
from .upstream import ROOT

NAMES = {
    "immich_ml/main.py": ("app",),
    "immich_ml/sessions/ann/__init__.py": ("AnnSession",),
    "immich_ml/sessions/rknn/__init__.py": ("RknnSession",),
}
"""Everything that we use of upstream's package: names by file. main.py is upstream_main in our image."""
CONFIGURATION = {"WorkingDir": "/usr/src", "Entrypoint": ["tini", "--"], "User": ""}
"""Values that the base image must have."""
REPLACED = ("Cmd", "Healthcheck")
"""Our image has its own, but a maintainer should see what upstream changed."""
ENVIRONMENT = (
    *("PATH", "PYTHONPATH", "VIRTUAL_ENV", "DEVICE", "LD_PRELOAD"),
    *("MACHINE_LEARNING_CACHE_FOLDER", "MACHINE_LEARNING_MODEL_ARENA"),
)
NEEDED = {"PYTHONPATH": "/usr/src", "MACHINE_LEARNING_CACHE_FOLDER": "/cache"}
"""Environment variables that must keep these values."""
ALSO_IMPORTED = ("gunicorn", "onnxruntime", "pydantic", "protobuf", "h11", "uvloop")
"""Libraries that the image uses in addition to those in pyproject.toml. onnxruntime means any build of it."""
OLDEST_PYTHON = (3, 11)

_NOISE = re.compile(r"IMMICH_(BUILD|SOURCE|REPOSITORY|THIRD_PARTY).*|GPG_KEY|PYTHON_SHA256")
_LONGEST_DIFF = 200


@dataclass(frozen=True)
class Change:
    """A difference. gone: something that we need is missing. relied: we rely on it. text: what it is, then the diff."""

    gone: bool
    relied: bool
    text: str


@dataclass(frozen=True)
class Release:
    """A release of the base: contents and configuration of the CPU image, configurations of the others by target."""

    contents: Contents
    configuration: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]]


def compare(old: Release, new: Release) -> list[Change]:
    """The changes, first what is gone, then what else we rely on."""
    changes = [*_files(old.contents.files, new.contents.files)]
    changes += _configuration("", old.configuration, new.configuration)
    for image in sorted(old.others.keys() & new.others.keys()):
        changes += _configuration(f"{image}: ", old.others[image], new.others[image])
    changes += _libraries(old.contents.libraries, new.contents.libraries)
    if (before := old.contents.python) != (after := new.contents.python):
        gone = _numbers(after)[:2] < OLDEST_PYTHON
        changes.append(Change(gone, _numbers(before)[:2] != _numbers(after)[:2], f"Python: {before} -> {after}"))
    if (before := old.contents.preloaded) != (after := new.contents.preloaded):
        changes.append(Change(False, True, f"/etc/ld.so.preload: {_told(before)} -> {_told(after)}"))
    return sorted(changes, key=lambda change: (not change.gone, not change.relied))


def imported() -> dict[str, str]:
    """The libraries that the overlay imports, with the oldest version that works; "" if any does."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = dict.fromkeys(ALSO_IMPORTED, "")
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["cpu"]):
        if form := re.match(r"([\w-]+)(?:\[[^]]*\])?>=([\d.]+)", requirement):
            found[form[1].lower()] = form[2]
    return found


def _files(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[Change]:
    for path in sorted(old.keys() | new.keys()):
        names = NAMES.get(path, ())
        if path not in new:
            yield Change(bool(names), bool(names), f"gone: {path}")
            continue
        text = new[path].decode(errors="replace")
        for missing in (name for name in names if not _declares(text, name)):
            yield Change(True, True, f"gone: {missing} of {path}")
        if path not in old:
            yield Change(False, False, f"new: {path}")
        elif old[path] != new[path]:
            difference = _difference(old[path].decode(errors="replace"), text)
            yield Change(False, bool(names), f"changed: {path}\n{difference}")


def _declares(source: str, name: str) -> bool:
    """Whether a module defines or imports this name. Searches the text: its syntax may be newer than this Python."""
    declared = (
        rf"^\s*(?:async\s+def|def|class)\s+{name}\b|^{name}\s*(?::[^=\n]+)?=|^\s*(?:from\s.*)?import\b.*\b{name}\b"
    )
    return re.search(declared, source, re.MULTILINE) is not None


def _configuration(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    shown = (*CONFIGURATION, *REPLACED, "ExposedPorts", "Volumes", "StopSignal")
    for key in shown:
        before, after = old.get(key) or "", new.get(key) or ""
        if before == after:
            continue
        gone = key in CONFIGURATION and after != CONFIGURATION[key]
        yield Change(gone, key in (*CONFIGURATION, *REPLACED), f"{where}{key}: {_told(before)} -> {_told(after)}")
    variables = [dict(line.partition("=")[::2] for line in about.get("Env") or ()) for about in (old, new)]
    for name in sorted(variables[0].keys() | variables[1].keys()):
        before, after = (values.get(name) for values in variables)
        if before == after or _NOISE.fullmatch(name):
            continue
        gone = name in NEEDED and (after or "") != NEEDED[name]
        yield Change(gone, name in ENVIRONMENT, f"{where}{name}: {_told(before)} -> {_told(after)}")


def _libraries(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    ours = imported()
    old, new = _one_onnxruntime(old), _one_onnxruntime(new)
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if after is None:
            yield Change(name in ours, name in ours, f"library gone: {name} {before}")
        elif before is None:
            yield Change(False, name in ours, f"library new: {name} {after}")
        else:
            too_old = bool(ours.get(name)) and _numbers(after) < _numbers(ours[name])
            said = f", older than the {ours[name]} of pyproject.toml" if too_old else ""
            yield Change(too_old, name in ours, f"library: {name} {before} -> {after}{said}")


def _one_onnxruntime(libraries: Mapping[str, str]) -> dict[str, str]:
    return {re.sub(r"^onnxruntime-.*", "onnxruntime", name): version for name, version in libraries.items()}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:4])


def _difference(before: str, after: str) -> str:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2))[2:]
    rest = [f"… {len(lines) - _LONGEST_DIFF} more lines"] if len(lines) > _LONGEST_DIFF else []
    return "\n".join(f"  {line}" for line in (*lines[:_LONGEST_DIFF], *rest))


def _told(value: Any) -> str:
    return "nothing" if value in (None, "") else str(value)

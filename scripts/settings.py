# SPDX-License-Identifier: AGPL-3.0-only
"""Writes docs/settings.md and docs/settings.zh-CN.md: the table of settings, from the package's own descriptions."""

import argparse
import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mt_photos_ml.settings import KEY_FILE, Settings, variable
from mt_photos_ml.settings.values import TASKS

PAGES = tuple(Path(__file__).parents[1] / "docs" / name for name in ("settings.md", "settings.zh-CN.md"))
TEXTS = {
    KEY_FILE: (
        "a file with the key, such as a Docker secret; instead of `API_AUTH_KEY`",
        "存放密钥的文件，例如 Docker secret；用来代替 `API_AUTH_KEY`",
    ),
    "FORWARDED_ALLOW_IPS": (
        "comma-separated proxy addresses whose `X-Forwarded-For` is trusted",
        "反向代理的地址，用逗号隔开；只采信它们发来的 `X-Forwarded-For`",
    ),
}
"""Settings that are not fields of Settings."""


def settings_of_fields() -> Iterator[tuple[list[str], tuple[str, str]]]:
    """Fields that share a description, and the description in English and Chinese."""
    (definition,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(definition, ast.ClassDef)
    fields = list[str]()
    for statement in definition.body[1:]:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                fields.append(name)
            case ast.Expr(value=ast.Constant(value=str(text))):
                english, chinese = re.split(r"\n +| / ", text)
                yield fields, (english, chinese)
                fields = []
    if fields:
        raise ValueError(f"without a description: {', '.join(fields)}")


def table() -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Variables, defaults, and the description in English and Chinese."""
    for fields, texts in settings_of_fields():
        defaults = dict.fromkeys(filter(None, map(default_of, fields)))
        yield names(map(variable, fields)), names(defaults), texts
        if "api_auth_key" in fields:
            yield names([KEY_FILE]), "", TEXTS[KEY_FILE]
        if "immich_port" in fields:
            yield names(["FORWARDED_ALLOW_IPS"]), "`127.0.0.1`", TEXTS["FORWARDED_ALLOW_IPS"]


def default_of(field: str) -> str:
    """The default as a user types it; empty if it depends on the machine."""
    default = Settings.model_fields[field].default
    if field in ("request_threads", "model_intra_op_threads", "instance_name") or default is None:
        return ""
    if isinstance(default, frozenset):
        return ",".join(task for task in TASKS if task in default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def names(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def render(page: Path) -> str:
    """The page with its existing introduction and a new table."""
    chinese = PAGES.index(page)
    rows = [
        f"| {given} | {default} |".replace(", ", "、" if chinese else ", ").replace("|  |", "| |")
        + f" {texts[chinese]} |"
        for given, default, texts in table()
    ]
    introduction, head, _ = re.split(r"(^\| --- .*\n)", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.M)
    return introduction + head + "\n".join(rows) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for page in PAGES:
        page.write_text(render(page), encoding="utf-8")


if __name__ == "__main__":
    main()

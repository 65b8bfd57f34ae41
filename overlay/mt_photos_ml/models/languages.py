# SPDX-License-Identifier: AGPL-3.0-only
"""The FLORES-200 codes by which nllb models name a language: from its usual code, or from the script of a text."""

import tomllib
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path


@cache
def _tables() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def flores_code(language: str) -> str | None:
    """`zho_Hans` for "zh-CN", "zh" or "zho_Hans" itself; None for an unknown language."""
    codes = _tables()["codes"]
    if language in codes.values():
        return language
    usual = language.lower().replace("_", "-")
    return codes.get(usual) or codes.get(usual.split("-")[0])


def flores_of_script(text: str) -> str:
    """The likeliest language by the script of most letters: Han means Chinese, Latin means English. Any kana means
    Japanese, because most letters of a Japanese text may be Han."""
    languages = _tables()["scripts"]
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    if scripts["HIRAGANA"] or scripts["KATAKANA"]:
        return languages["HIRAGANA"]
    return next((languages[script] for script, _ in scripts.most_common() if script in languages), "eng_Latn")

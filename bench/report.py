# SPDX-License-Identifier: AGPL-3.0-only
"""Shows the results: tables on the terminal and in Markdown, the targets, a chart."""

import operator
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markdown import Markdown

from bench.measure import Ratio
from bench.photos import ALL

COLOURS = {"floor": "#9aa4ae", "ours": "#2f81f7", "straightforward": "#d29922"}
Rows = Sequence[Mapping[str, object]]  # cells by the column's name, the same columns in each
_VERSIONS = """import platform as p, onnxruntime as o, PIL, cv2, numpy as n
print(p.python_version(), o.__version__, PIL.__version__, cv2.__version__, n.__version__)"""
_GREY = "#7d8590"  # readable on a light page and on a dark one
_LARGE, _SMALL = ({route: names[i] for route, names in ALL.items()} for i in (0, 1))
TARGETS: Mapping[str, str] = tomllib.loads(Path(__file__).with_name("targets.toml").read_text())


def _cell(value: object) -> str:
    """Numbers with two significant decimals at most: 0.48, 19.5, 1342."""
    if isinstance(value, float) and not isinstance(value, Ratio):
        return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
    return str(value)


class Table(NamedTuple):
    """A table of results. note: how to read it, in a sentence or two."""

    title: str
    note: str
    rows: Rows

    def markdown(self) -> str:
        lines = [list(self.rows[0]), ["---"] * len(self.rows[0]), *(row.values() for row in self.rows)]
        rows = ("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        return "\n".join((f"\n## {self.title}\n\n{self.note}\n", *rows, ""))

    def show(self) -> None:
        Console(width=None if os.isatty(1) else 150).print(Markdown(self.markdown()))


def targets(figures: Mapping[str, float]) -> Table:
    """Whether each target is met; if not, whether the floor would meet it."""
    rows = []
    for name, limit in TARGETS.items():
        sign, number, *unit = limit.split()
        meets = partial(operator.le if sign == "≥" else operator.ge, float(number))
        value, best = figures.get(name), figures.get(name.replace(" / ours", " / floor"))
        shown = "" if value is None else " ".join((f"{value:.{len(number.partition('.')[2])}f}", *unit))
        if value is None:
            state = "not measured"
        elif meets(value):
            state = "met"
        elif best is None or meets(best) or not name.endswith(" / ours"):
            state = "not met"
        else:
            state = f"not met, nor by the floor: {best:.2f}"
        rows.append({"figure": name, "target": limit, "measured": shown, "state": state})
    return Table("Targets", "Goals on 2 cores, in one run.", rows)


def machine(command: str, image: str) -> Table:
    """The machine, the libraries and the date. image: the one that our service runs in, if any."""
    python = ["docker", "run", "--rm", "--entrypoint=python", image] if image else [sys.executable]
    versions = subprocess.run([*python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    facts = {
        "command": f"`{command}`",
        "processor": f"{cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "system": f"{platform.freedesktop_os_release().get('PRETTY_NAME', '?')}, Linux {platform.release()}",
        "date": date.today().isoformat(),
        **dict(zip(("Python", "onnxruntime", "Pillow", "OpenCV", "numpy"), versions.split(), strict=True)),
    }
    rows = [{"": name, "measured on": fact} for name, fact in facts.items()]
    return Table("Machine", "The machine of the measurement, and the libraries that ours uses.", rows)


def write(page: Path, tables: Sequence[Table]) -> None:
    """Replaces the page from the first table on; keeps the introduction, which is written by hand."""
    introduction = page.read_text().partition(f"\n## {tables[0].title}\n")[0]
    page.write_text(introduction + "".join(table.markdown() for table in tables))


def chart(figures: Mapping[str, float], path: Path) -> None:
    """A bar chart of milliseconds a photo, with a transparent background. The same figures give the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for panel, photos in zip(panels, (_LARGE, _SMALL), strict=True):
            for place, (who, colour) in enumerate(COLOURS.items(), -1):
                values = [figures.get(f"{route}, {photo}: {who}", 0.0) for route, photo in photos.items()]
                bars = panel.barh([row + 0.27 * place for row in range(3)], values, 0.25, color=colour, label=who)
                panel.bar_label(bars, fmt="%.0f", padding=3, color=_GREY)
            panel.set_title(f"{photos['/ocr'].removesuffix(' page')}: milliseconds a photo", color=_GREY, fontsize=10)
            panel.set_yticks(range(3), list(photos))
            panel.invert_yaxis()
            panel.set_xticks([])
            panel.margins(x=0.15)
            panel.tick_params(length=0, labelcolor=_GREY)
            panel.spines[:].set_visible(False)
        names = panels[0].get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=3, frameon=False, labelcolor=_GREY)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})

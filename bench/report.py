# SPDX-License-Identifier: AGPL-3.0-only
"""What was measured, for people: tables on the terminal and in Markdown, the targets, a chart. Measures nothing."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markdown import Markdown

from bench.photos import JPEG_12, JPEG_1440, PAGE_12, PAGE_1440

COLOURS = {"floor": "#9aa4ae", "ours": "#2f81f7", "straightforward": "#d29922"}
CONTENDERS = tuple(COLOURS)
_GREY = "#7d8590"  # to be read on a light page and on a dark one
_INTRODUCTION = """# Benchmarks

Written by `{command}`; do not edit. All was measured in one run on one machine, and what counts are the ratios: the \
floor, ours and the straightforward service take turns, and a ratio is the median over the pairs.

- **Floor**: bare onnxruntime with the same threads and the fastest decode that keeps 50 dB, in one process, without \
HTTP, its sessions as they come. Ours can fall below it, since its sessions stop spinning when they have finished.
- **Ours**: this service, over HTTP.
- **Straightforward**: as the first version of this project was: the photo decoded whole, twice, and resized from it.

The models have the real sizes and random weights (ViT-B/32, XLM-R base, SCRFD-10G, IResNet-50), but for OCR, which \
has its real ones (PP-OCRv6 small). The photos are made by the benchmark.

![Milliseconds of a photo]({chart})

{facts}
"""
_IMAGE = "\nThese are the image's libraries; the floor and the straightforward service ran on this machine's.\n"


class Table(NamedTuple):
    """note: how to read it, in a sentence or two."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        rows = ("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n".join((f"\n## {self.title}\n\n{self.note}\n", *rows, ""))

    def show(self) -> None:
        Console(width=None if os.isatty(1) else 150).print(Markdown(self.markdown()))


class Target(NamedTuple):
    """figure: its name in the results. limit: such as "≤ 1.5 ms". best: the figure that the floor itself reaches."""

    what: str
    figure: str
    limit: str
    best: str = ""

    def row(self, figures: Mapping[str, float]) -> list[str]:
        """What, the target, the figure, and whether it is met."""
        sign, number, *unit = self.limit.split()
        if (value := figures.get(self.figure)) is None:
            return [self.what, self.limit, "", "not measured"]

        def shown(value: float) -> str:
            return " ".join((f"{value:.{len(number.partition('.')[2])}f}", *unit))

        state = "met" if (value >= float(number) if sign == "≥" else value <= float(number)) else "not met"
        if state == "not met" and (best := figures.get(self.best, float(number))) < float(number):
            state += f", nor by the floor: {shown(best)}"
        return [self.what, self.limit, shown(value), state]


_PHOTOS = [("/clip/img", JPEG_12), ("/represent", JPEG_12), ("/ocr", PAGE_12)]
_PHOTOS += [("/clip/img", JPEG_1440), ("/represent", JPEG_1440), ("/ocr", PAGE_1440)]
TARGETS = [Target(f"{route}, {name}: ours / floor", f"ours/floor {route} {name}", "≤ 1.10") for route, name in _PHOTOS]
for (_on, _name), _limit in zip(_PHOTOS, ("3.30", "1.45", "2.00", "1.80", "1.20", "1.20"), strict=True):
    _what, _than = f"{_on}, {_name}: straightforward / ours", f"straightforward/{{}} {_on} {_name}"
    TARGETS.append(Target(_what, _than.format("ours"), f"≥ {_limit}", _than.format("floor")))
for _on, _ in _PHOTOS[:3]:
    TARGETS.append(Target(f"{_on}, eight at a time: throughput / floor's best", f"throughput {_on} 8", "≥ 0.95"))
    TARGETS.append(Target(f"{_on}, eight at a time: slowest / median", f"slowest {_on} 8", "≤ 1.50"))
TARGETS += [
    Target("a model that costs nothing, 12 MP: straightforward / ours", f"overhead less {JPEG_12}", "≥ 6.0"),
    Target("a model that costs nothing, 12 MP: beyond decode and resize", f"overhead beyond {JPEG_12}", "≤ 3.0 ms"),
    Target("/check under load, p99", "check p99 ours", "≤ 20.0 ms"),
    Target("start to the first /check", "start ours", "≤ 0.80 s"),
    Target("memory, idle (RSS)", "idle", "≤ 110 MB"),
    Target("anonymous memory with all models / their size on disk", "anonymous/disk", "≤ 0.25"),
    Target("loading a model once it is prepared, the slowest", "slowest load", "≤ 0.50 s"),
    Target("OCR memory, after 1,000 photos / after 100", "ocr memory", "≤ 1.05"),
    Target("the same text again / another text", "same text", "≤ 0.10"),
    Target("first search after idle, with preload / another text", "after idle", "≤ 2.00"),
]


def targets(figures: Mapping[str, float]) -> Table:
    rows = [target.row(figures) for target in TARGETS]
    return Table("Targets", "What is to be reached on 2 cores, in one run.", ("", "target", "measured", ""), rows)


def machine() -> dict[str, str]:
    """What the figures were measured on, and when."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "processor": f"{cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "system": f"{platform.freedesktop_os_release().get('PRETTY_NAME', '?')}, Linux {platform.release()}",
        "date": date.today().isoformat(),
    }


def markdown(
    tables: Sequence[Table], figures: Mapping[str, float], facts: Mapping[str, str], command: str, chart: str
) -> str:
    """The page docs/benchmarks.md. chart: the file beside it."""
    shown = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    page = _INTRODUCTION.format(command=command, chart=chart, facts=shown) + _IMAGE * ("image" in facts)
    return page + "".join(table.markdown() for table in (targets(figures), *tables))


def chart(figures: Mapping[str, float], path: Path) -> None:
    """Bars of the milliseconds of a photo, on no background. The same figures give the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for panel, (jpeg, page) in zip(panels, ((JPEG_12, PAGE_12), (JPEG_1440, PAGE_1440)), strict=True):
            photos = {"/clip/img": jpeg, "/represent": jpeg, "/ocr": page}
            for place, (who, colour) in enumerate(COLOURS.items()):
                values = [figures.get(f"ms {route} {photo} {who}", 0.0) for route, photo in photos.items()]
                bars = panel.barh([row + 0.27 * (place - 1) for row in range(3)], values, 0.25, color=colour, label=who)
                panel.bar_label(bars, fmt="%.0f", padding=3, color=_GREY)
            panel.set_title(f"{jpeg.removesuffix(' JPEG')}: milliseconds a photo", color=_GREY, fontsize=10)
            panel.set_yticks(range(3), list(photos))
            panel.invert_yaxis()
            panel.set_xticks([])
            panel.margins(x=0.15)
            panel.tick_params(length=0, labelcolor=_GREY)
            panel.spines[:].set_visible(False)
        names = panels[0].get_legend_handles_labels()
        figure.legend(*names, loc="outside lower center", ncols=3, frameon=False, labelcolor=_GREY)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})

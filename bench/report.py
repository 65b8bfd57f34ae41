# SPDX-License-Identifier: AGPL-3.0-only
"""What was measured, for people: tables on the terminal and in Markdown, the targets, a chart. Measures nothing."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table as Drawn

from bench.photos import JPEG_12, JPEG_1440, PAGE_12, PAGE_1440

_COLOURS = {"floor": "#9aa4ae", "ours": "#2f81f7", "straightforward": "#d29922"}
_GREY = "#7d8590"  # to be read on a light page and on a dark one


@dataclass
class Table:
    """note: how to read it, in a sentence or two."""

    title: str
    note: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append(list(map(str, cells)))


@dataclass
class Results:
    """figures: by name, what the targets and the chart need."""

    tables: list[Table] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """figure: its name in the results. limit: what is to be reached. at_least: else it is the most.

    most: the figure that says how much the floor itself reaches.
    """

    what: str
    figure: str
    limit: float
    at_least: bool = False
    unit: str = ""
    digits: int = 2
    most: str = ""

    def row(self, figures: Mapping[str, float]) -> list[str]:
        """What, the target, the figure, and whether it is met."""
        number = self._shown(self.limit)
        value = figures.get(self.figure)
        if value is None:
            return [self.what, f"{'≥' if self.at_least else '≤'} {number}", "", "not measured"]
        state = "met" if (value >= self.limit if self.at_least else value <= self.limit) else "not met"
        if state == "not met" and figures.get(self.most, self.limit) < self.limit:
            state = f"not met, nor by the floor: {self._shown(figures[self.most])}"
        return [self.what, f"{'≥' if self.at_least else '≤'} {number}", self._shown(value), state]

    def _shown(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"


def _speed() -> list[Target]:
    ahead = {("/clip/img", "12 MP"): 3.3, ("/represent", "12 MP"): 1.45, ("/ocr", "12 MP"): 2.0}
    ahead |= {("/clip/img", "1440×1080"): 1.8, ("/represent", "1440×1080"): 1.2, ("/ocr", "1440×1080"): 1.2}
    photos = {(route, size): f"{size} {'page' if route == '/ocr' else 'JPEG'}" for route, size in ahead}
    targets = [Target(f"{r}, {p}: ours / floor", f"ours/floor {r} {p}", 1.10) for (r, _), p in photos.items()]
    for (route, size), least in ahead.items():
        photo = photos[route, size]
        what, most = f"{route}, {photo}: straightforward / ours", f"straightforward/floor {route} {photo}"
        targets.append(Target(what, f"straightforward/ours {route} {photo}", least, at_least=True, most=most))
    for route in ("/clip/img", "/represent", "/ocr"):
        targets.append(
            Target(f"{route}, eight at a time: throughput / floor's best", f"throughput {route} 8", 0.95, True)
        )
        targets.append(Target(f"{route}, eight at a time: slowest / median", f"slowest {route} 8", 1.5))
    return targets


TARGETS = (
    *_speed(),
    Target("a model that costs nothing, 12 MP: straightforward / ours", f"overhead less {JPEG_12}", 6, True, digits=1),
    Target(
        "a model that costs nothing, 12 MP: beyond decode and resize", f"overhead beyond {JPEG_12}", 3, False, " ms", 1
    ),
    Target("/check under load, p99", "check p99 ours", 20, False, " ms", 1),
    Target("start to the first /check", "start ours", 0.8, False, " s"),
    Target("memory, idle (RSS)", "idle", 110, False, " MB", 0),
    Target("anonymous memory with all models / their size on disk", "anonymous/disk", 0.25),
    Target("loading a model once it is prepared, the slowest", "slowest load", 0.5, False, " s"),
    Target("OCR memory, after 1,000 photos / after 100", "ocr memory", 1.05),
    Target("the same text again / another text", "same text", 0.1),
    Target("first search after idle, with preload / another text", "after idle", 2.0),
)


def targets(results: Results) -> Table:
    table = Table("Targets", "What is to be reached on 2 cores, in one run.", ("", "target", "measured", ""))
    table.rows = [target.row(results.figures) for target in TARGETS]
    return table


def machine() -> dict[str, str]:
    """What the figures were measured on, and when."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return {
        "processor": f"{cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{int(memory[1]) * 1024 / 1e9:.0f} GB" if memory else "?",
        "system": f"{platform.freedesktop_os_release().get('PRETTY_NAME', '?')}, Linux {platform.release()}",
        "date": date.today().isoformat(),
    }


def show(table: Table) -> None:
    drawn = Drawn(*table.columns, title=table.title, caption=table.note, title_justify="left", caption_justify="left")
    for row in table.rows:
        drawn.add_row(*row)
    Console(width=None if os.isatty(1) else 150).print(drawn)


def markdown(results: Results, facts: Mapping[str, str], command: str, chart: str) -> str:
    """The page docs/benchmarks.md. chart: the file beside it."""
    parts = [
        "# Benchmarks",
        f"Written by `{command}`; do not edit. All of it was measured in one run on one machine, and what counts are "
        "the ratios: the floor, ours and the straightforward service take turns, and a ratio is the median over the "
        "pairs.",
        "- **Floor**: bare onnxruntime with the same threads and the fastest decode that keeps 50 dB, in one process, "
        "without HTTP, its sessions as they come. Ours can fall below it where one model follows another, since its "
        "sessions stop spinning when they have finished.\n"
        "- **Ours**: this service, over HTTP.\n"
        "- **Straightforward**: a service written as one would at first, and as the first version of this project was: "
        "the photo decoded whole, twice, and resized from full size.",
        "The models have the real architectures' sizes and random weights (ViT-B/32, XLM-R base, SCRFD-10G, "
        "IResNet-50), but for OCR, which has its real ones (PP-OCRv6 small). The photos are made by the benchmark.",
        f"![Milliseconds of a photo]({chart})",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
    ]
    if "image" in facts:
        parts.append(
            "These are the image's libraries; the floor and the straightforward service ran outside it, on this "
            "machine's."
        )
    for table in (targets(results), *results.tables):
        parts += [f"## {table.title}", table.note, _rows(table)]
    return "\n\n".join(parts) + "\n"


def _rows(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def chart(figures: Mapping[str, float], path: Path) -> None:
    """Bars of the milliseconds of a photo, on no background. The same figures give the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for panel, (jpeg, page) in zip(panels, ((JPEG_12, PAGE_12), (JPEG_1440, PAGE_1440)), strict=True):
            photos = {"/clip/img": jpeg, "/represent": jpeg, "/ocr": page}
            for place, (who, colour) in enumerate(_COLOURS.items()):
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
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, labelcolor=_GREY
        )
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})

# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m bench`: measures the floor, ours and the straightforward service, and prints and writes what it found."""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench import models, photos, report
from bench.run import Bench
from bench.sections import SECTIONS, SLOW
from bench.service import ROOT, Launcher


def main() -> None:
    parser = argparse.ArgumentParser("bench", description="The floor, ours and a straightforward service, in one run.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and the core figures only: two minutes")
    parser.add_argument("--image", help="measure a container of this image instead of the checkout")
    parser.add_argument("--python", default=sys.executable, help="run ours by this interpreter, with its libraries")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this section; may be given several times")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and .svg (benchmarks-image)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="for models, photos and logs (3 GB)")
    chosen = parser.parse_args()
    if chosen.write and chosen.only:
        parser.error("--write wants all sections")

    folder = chosen.folder.absolute()
    print("models and photos, made once", flush=True)
    models.build(folder / "cache")
    settings = models.environment(folder / "cache")
    launcher = Launcher(folder / "cache", folder / "logs", settings, chosen.python, chosen.image)
    facts = report.machine() | launcher.versions()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    with ExitStack() as ended:
        bench = Bench(launcher, photos.photos(folder / "photos"), chosen.quick, ended)
        for name in chosen.only or [name for name in SECTIONS if not (chosen.quick and name in SLOW)]:
            known, started = len(bench.tables), time.monotonic()
            SECTIONS[name](bench)
            print(f"{name}: {time.monotonic() - started:.0f} seconds", flush=True)
            for table in bench.tables[known:]:
                table.show()
    if not chosen.only:
        report.targets(bench.figures).show()
    if chosen.write:
        page = ROOT / "docs" / ("benchmarks-image.md" if chosen.image else "benchmarks.md")
        chart = page.with_suffix(".svg")
        command = f"python -m bench {' '.join(sys.argv[1:])}"
        page.write_text(report.markdown(bench.tables, bench.figures, facts, command, chart.name))
        report.chart(bench.figures, chart)


if __name__ == "__main__":
    main()

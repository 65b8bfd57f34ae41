# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m bench`: measures the floor, our service and the straightforward one; prints and writes the results."""

import argparse
import sys
import time
from pathlib import Path

from bench import models, report
from bench.device import device
from bench.report import Table
from bench.sections import SECTIONS, SLOW, Bench
from bench.service import ROOT, Launcher


def main() -> None:
    parser = argparse.ArgumentParser(
        "bench", description="Measures the floor, our service and the straightforward one."
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and the core figures only: two minutes")
    parser.add_argument("--image", default="", help="measure a container of this image instead of the checkout")
    parser.add_argument("--device", action="store_true", help="measure each task on the device and on the processor")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure only this section (repeatable)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and .svg (benchmarks-image)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="folder for models and logs (3 GB)")
    chosen = parser.parse_args()
    if chosen.write and chosen.only:
        parser.error("--write needs all sections: leave out --only")

    folder = chosen.folder.absolute()
    print("building the models, if they are not there yet", flush=True)
    models.build(folder / "cache")
    bench = Bench(Launcher(models.environment(folder / "cache"), folder / "logs", chosen.image), chosen.quick)
    tables = [report.machine(f"python -m bench {' '.join(sys.argv[1:])}", chosen.image)]
    tables[0].show()
    if chosen.device:
        Table("Devices", " ".join(str(device.__doc__).split()), device(bench)).show()
        return
    if not bench.launcher.prepared():
        bench.launcher.prepare()
    for name in chosen.only or [name for name in SECTIONS if not (chosen.quick and name in SLOW)]:
        (title, measure), started = SECTIONS[name], time.monotonic()
        tables.append(Table(title, " ".join(str(measure.__doc__).split()), measure(bench)))
        print(f"{name}: {time.monotonic() - started:.0f} seconds", flush=True)
        tables[-1].show()
    if not chosen.only:
        tables.insert(1, report.targets(bench.figures))
        tables[1].show()
    if chosen.write:
        page = ROOT / "docs" / ("benchmarks-image.md" if chosen.image else "benchmarks.md")
        report.write(page, tables)
        report.chart(bench.figures, page.with_suffix(".svg"))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: AGPL-3.0-only
"""The command bench: measures how fast this machine is."""

import asyncio
import contextlib
import json
import sys
from dataclasses import asdict

import click

from ..server.startup import settings_or_exit
from .terminal import print_table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def bench(as_json: bool) -> None:
    """Measure photos a day for each task. Suggests what would make it faster."""
    from ..engine import Engine
    from ..engine.benchmark import Report, measure
    from ..machine.memory import configure_malloc

    settings = settings_or_exit()
    configure_malloc()

    async def run() -> Report:
        with contextlib.closing(Engine(settings)) as engine:
            return await measure(engine)

    report = asyncio.run(run())
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(f"{report.device}; a photo of {report.megapixels:.0f} megapixels, generated")
        rows = list[tuple[str, ...]]()
        for task in report.tasks:
            figures = (f"{task.milliseconds} ms", f"{task.per_day:,}") if task.per_day else (task.problem or "",)
            rows.append((task.task, task.device, *figures))
        print_table(("task", "device", "one photo", "photos a day"), rows)
        for hint in report.hints:
            print(f"- {hint.text}")
    sys.exit(int(any(task.problem for task in report.tasks)))

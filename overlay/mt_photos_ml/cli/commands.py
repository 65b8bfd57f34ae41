# SPDX-License-Identifier: AGPL-3.0-only
"""The commands that look after an installation: doctor, models."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..machine.files import size_of
from ..models import catalog, checks
from ..models import choice as selection
from ..models.catalog import ModelRef
from ..server import logs
from ..settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from ..engine.benchmark import Report


def settings_or_exit(check: bool = False) -> Settings:
    """check: whether the models that they choose are looked at too. Ends the process where something is wrong."""
    try:
        settings = load()
        if check:
            checks.check_models(settings)
    except SettingsError as error:
        print(f"mt-photos-ml: {error}".replace("\n", "\nmt-photos-ml: "), file=sys.stderr)
        sys.exit(2)
    logs.to_stderr(settings.log_level, settings.log_format)
    return settings


@click.command()
def doctor() -> None:
    """Check settings, decoders, devices, cache, network."""
    from .doctor import checks

    broken = False
    for state, what, detail in checks(settings_or_exit()):
        broken |= state == "FAIL"
        print(f"{state:4}  {what}: {detail}")
    sys.exit(broken)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def bench(as_json: bool) -> None:
    """Measure this machine: photos a day for each task, and what would help."""
    import asyncio
    import json

    from rich.console import Console
    from rich.table import Table

    from ..engine import Engine
    from ..engine.benchmark import measure
    from ..machine.memory import configure_malloc

    settings = settings_or_exit(check=True)
    configure_malloc()

    async def run() -> "Report":
        engine = Engine(settings)
        try:
            return await measure(engine)
        finally:
            engine.close()

    report = asyncio.run(run())
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        print(f"{report.device}; a photo of {report.megapixels:.0f} megapixels, made here")
        table = Table("task", "one photo", "photos a day", box=None, pad_edge=False)
        for task in report.tasks:
            figures = (f"{task.milliseconds} ms", f"{task.per_day:,}") if task.per_day else (task.problem, "")
            table.add_row(task.task, *figures)
        Console(width=None if sys.stdout.isatty() else 140).print(table)
        for hint in report.hints:
            print(f"- {hint.text}")
    sys.exit(int(any(task.problem for task in report.tasks)))


@click.group()
def models() -> None:
    """Look after the model files."""


@models.command("list")
def list_() -> None:
    """The models known and those in the cache."""
    from rich.console import Console
    from rich.table import Table

    from ..models.prune import find_cached
    from ..runtime.prepared.runtime import FOLDER

    settings = settings_or_exit()
    used = {(ref.task, ref.name) for ref in selection.in_use(settings).values()}
    there = {(folder.parent.name, folder.name): folder for folder in find_cached(settings.cache_folder)}
    table = Table("task", "model", "vector", "languages", "on disk", "prepared", "", box=None, pad_edge=False)
    for task, names in catalog.KNOWN.items():
        own = sorted(name for other, name in there if other == task and name not in names)
        for name in (*names, *own):
            clip = catalog.CLIP_MODELS.get(name) if task == catalog.CLIP else None
            folder = there.get((task, name))
            size, prepared = (size_of(folder), sum(map(size_of, folder.rglob(FOLDER)))) if folder else (0, 0)
            table.add_row(
                catalog.SWITCHES[task],
                name,
                str(clip.length) if clip else "",
                clip.languages if clip else "",
                f"{(size - prepared) / 1e6:.0f} MB" if size else "",
                f"{prepared / 1e6:.0f} MB" if prepared else "",
                "in use" if (task, name) in used else "",
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@models.command()
def pull() -> None:
    """Download what the settings need."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

    from ..models.hub import DownloadError, Hub
    from ..models.progress import Download

    settings, failed = settings_or_exit(), False
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        rows: dict[ModelRef, TaskID] = {}

        def draw(download: Download) -> None:
            ref = download.ref
            if ref not in rows:
                rows[ref] = bars.add_task(f"{ref.task} {ref.type}", total=download.total)
            bars.update(rows[ref], completed=download.done, total=download.total)

        hub = Hub(settings.cache_folder, settings.hf_endpoint, progress=draw, logs=False)
        for ref in selection.in_use(settings).values():
            try:
                bars.console.print(f"{ref}: {hub.fetch(ref)}", soft_wrap=True)
            except DownloadError as error:
                failed = True
                bars.console.print(f"{ref}: {error}", soft_wrap=True, style="red")
    sys.exit(failed)


@models.command()
def verify() -> None:
    """Check the files in use, and that the runtime can open them."""
    from ..models.hub import Hub
    from ..models.sources import file_in_wheel
    from ..runtime.devices import Devices
    from ..runtime.ort import OrtRuntime

    settings, failed = settings_or_exit(), False
    hub, runtime = Hub(settings.cache_folder, settings.hf_endpoint), OrtRuntime(devices=Devices.of(settings))
    for ref in selection.in_use(settings).values():
        in_wheel = file_in_wheel(ref) if ref.missing(settings.cache_folder) else None
        wrong = None if in_wheel else hub.verify(ref)
        if wrong is None:
            try:
                runtime.open(in_wheel or ref.path(settings.cache_folder))
            except Exception as error:
                wrong = str(error)
        failed |= wrong is not None
        print(f"{ref}: {wrong or ('fine' if ref.sha256 else 'it loads (no checksum is known)')}")
    sys.exit(failed)


@models.command()
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def prune(yes: bool) -> None:
    """Delete models that are no longer used, and outdated prepared ones."""
    from ..models.prune import delete, find_unused

    stale = find_unused(settings_or_exit())
    if not stale:
        print("nothing to delete: every model in the cache is in use")
        return
    for path in stale:
        print(f"{size_of(path) / 1e6:8.0f} MB  {path}")
    try:
        if not yes and not click.confirm("Delete these?"):
            print("nothing deleted")
            sys.exit(1)
    except click.Abort:
        print("\nnothing deleted: nobody answered; --yes deletes without a question")
        sys.exit(1)
    delete(stale)
    print(f"deleted {len(stale)}")


@models.command()
@click.argument("name")
@click.argument("photos", type=click.Path(path_type=Path), nargs=-1, required=True)
def optimize(name: str, photos: tuple[Path, ...]) -> None:
    """Write int8 variants of the CLIP or face model NAME, quicker on the processor; measured on PHOTOS, photos or
    folders."""
    from ..int8.report import optimize_and_report

    sys.exit(optimize_and_report(settings_or_exit(), name, photos))

# SPDX-License-Identifier: AGPL-3.0-only
"""The commands models …: list, pull, verify, prune, optimize and adopt model files."""

import sys
from pathlib import Path

import click

from ..machine.files import size_of
from ..models import catalog
from ..models.catalog import ModelRef
from ..models.choice import in_use
from ..models.variants import variant_of
from ..server.startup import settings_or_exit
from .terminal import print_table


@click.group()
def models() -> None:
    """List, download, check and delete models."""


@models.command("list")
def list_() -> None:
    """List known models and those in the cache."""
    from ..models.prune import find_cached
    from ..runtime.prepared.runtime import FOLDER

    settings, rows = settings_or_exit(check=False), list[tuple[str, ...]]()
    used = {(ref.group, ref.name) for ref in in_use(settings).values()}
    there = {(folder.parent.name, folder.name): folder for folder in find_cached(settings.cache_folder)}
    for group, names in catalog.KNOWN.items():
        own = sorted(name for other, name in there if other == group and name not in names)
        for name in (*names, *own):
            clip, folder = catalog.CLIP_MODELS.get(name) if group == catalog.CLIP else None, there.get((group, name))
            facts = (str(clip.length), clip.languages) if clip else ("", "")
            prepared = sum(map(size_of, folder.rglob(FOLDER))) if folder else 0
            sizes = (size_of(folder) - prepared, prepared) if folder else (0, 0)
            on_disk = (f"{size / 1e6:.0f} MB" if size else "" for size in sizes)
            mark = "in use" if (group, name) in used else ""
            rows.append((catalog.TASKS_OF_GROUPS[group], name, *facts, *on_disk, mark))
    print_table(("task", "model", "vector", "languages", "on disk", "prepared", ""), rows)


@models.command()
def pull() -> None:
    """Download the models that the settings need."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

    from ..models.hub import DownloadError, Hub
    from ..models.progress import Download

    settings, failed = settings_or_exit(check=False), False
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        rows: dict[ModelRef, TaskID] = {}

        def draw(download: Download) -> None:
            ref = download.ref
            if ref not in rows:
                rows[ref] = bars.add_task(f"{ref.group} {ref.type}", total=download.total)
            bars.update(rows[ref], completed=download.done, total=download.total)

        hub = Hub(settings.cache_folder, settings.hf_endpoint, progress=draw, logs=False)
        for ref in in_use(settings).values():
            try:
                bars.console.print(f"{ref}: {hub.fetch(ref)}", soft_wrap=True)
            except DownloadError as error:
                failed = True
                bars.console.print(f"{ref}: {error}", soft_wrap=True, style="red")
    sys.exit(failed)


@models.command()
def verify() -> None:
    """Check and open the model files in use."""
    from ..models.hub import Hub
    from ..models.sources import file_in_wheel
    from ..runtime.ort import OrtRuntime

    settings, failed = settings_or_exit(check=False), False
    hub, runtime = Hub(settings.cache_folder, settings.hf_endpoint), OrtRuntime()
    for ref in in_use(settings).values():
        in_wheel = file_in_wheel(ref) if ref.missing(settings.cache_folder) else None
        wrong = None if in_wheel else hub.verify(ref)
        try:
            if wrong is None:
                runtime.open(in_wheel or variant_of(ref.path(settings.cache_folder), ref.variant))
        except Exception as error:
            wrong = str(error)
        failed |= wrong is not None
        print(f"{ref}: {wrong or ('fine' if ref.sha256 else 'it loads (no checksum is known)')}")
    sys.exit(failed)


@models.command()
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def prune(yes: bool) -> None:
    """Delete unused models and outdated prepared ones."""
    from ..models.prune import delete, find_unused

    stale = find_unused(settings_or_exit(check=False))
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
        print("\nnothing deleted: no answer; use --yes to delete without a question")
        sys.exit(1)
    delete(stale)
    print(f"deleted {len(stale)}")


@models.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def adopt(folder: Path) -> None:
    """Import the official service's Chinese-CLIP from FOLDER. Its index stays valid."""
    from ..models.adopt import CannotAdopt, adopt, find_exports

    cache = settings_or_exit(check=False).cache_folder
    try:
        for export in find_exports(folder):
            in_bgr, in_rgb = adopt(export, cache)
            print(f"{in_bgr}: sees colours as the official service does; its index stays valid")
            print(
                f"{in_rgb}: sees true colours; clear the CLIP results and index again, unless the official "
                "service's cuda image made them"
            )
            print(f"now set CLIP_VISUAL_MODEL_NAME and CLIP_TEXTUAL_MODEL_NAME={in_bgr.name}, or {in_rgb.name}")
    except (CannotAdopt, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


@models.command()
@click.argument("name")
@click.argument("photos", type=click.Path(path_type=Path), nargs=-1, required=True)
def optimize(name: str, photos: tuple[Path, ...]) -> None:
    """Write int8 variants of a model, which take half the time. NAME is a CLIP or face model. Measures the
    variants on PHOTOS, files or folders, and keeps those whose answers are close to the original's."""
    from ..int8.report import optimize_and_report

    sys.exit(optimize_and_report(settings_or_exit(check=False), name, photos))

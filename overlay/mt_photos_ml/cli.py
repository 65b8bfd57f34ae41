# SPDX-License-Identifier: AGPL-3.0-only
"""The command mt-photos-ml: serve, models, doctor."""

import argparse
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import logs, memory, version
from .models import catalog
from .runtime import prepared
from .settings import Settings, SettingsError, load

log = logging.getLogger("mt_photos_ml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser("mt-photos-ml", description="The MT Photos recognition service.")
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve_ = commands.add_parser("serve", help="run the service")
    serve_.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all of IPv4)")
    serve_.add_argument("--port", type=_port, help="port to listen on (default: HTTP_PORT, else 8060)")
    serve_.add_argument("--fd", type=int, help=argparse.SUPPRESS)  # the socket that a process before this one bound
    serve_.set_defaults(run=serve)

    models = commands.add_parser("models", help="look after the model files").add_subparsers(
        required=True, metavar="ACTION"
    )
    models.add_parser("list", help="the models known and those in the cache").set_defaults(run=models_list)
    models.add_parser("pull", help="download what the settings need").set_defaults(run=models_pull)
    models.add_parser("verify", help="check the files in use").set_defaults(run=models_verify)
    optimize = models.add_parser("optimize", help="write int8 variants of a model, quicker on the processor")
    optimize.add_argument("name", metavar="NAME", help="a CLIP or face model in the cache")
    optimize.add_argument("photos", metavar="PHOTOS", type=Path, nargs="+", help="photos or folders, to measure on")
    optimize.set_defaults(run=models_optimize)
    prune = models.add_parser("prune", help="delete models that are no longer used, and outdated prepared ones")
    prune.add_argument("-y", "--yes", action="store_true", help="do not ask")
    prune.set_defaults(run=models_prune)

    commands.add_parser("doctor", help="check settings, decoders, devices, cache, network").set_defaults(run=doctor)

    chosen = parser.parse_args(arguments)
    try:
        settings = load()
        if chosen.run is serve:
            catalog.check(settings)
            catalog.check_preloaded(settings)
    except SettingsError as error:
        print(f"mt-photos-ml: {error}".replace("\n", "\nmt-photos-ml: "), file=sys.stderr)
        return 2
    logs.to_stderr(settings.log_level)
    try:
        code: int = chosen.run(settings, chosen)
    except KeyboardInterrupt:
        return 130
    return code


def serve(settings: Settings, chosen: argparse.Namespace) -> int:
    """Serves until a signal; in-flight requests are answered before it ends."""
    import uvicorn

    from .app import announce, from_settings

    host, port = chosen.host, chosen.port or settings.http_port
    try:
        listening = socket.socket(fileno=chosen.fd) if chosen.fd is not None else _bound(host, port)
    except OSError as error:
        print(f"mt-photos-ml: can't listen on {host} port {port}: {error.strerror}", file=sys.stderr)
        return 1
    kept = listening.dup()  # uvicorn closes the one it is given; new clients wait at this one while we start afresh
    afresh = False

    def start_afresh() -> None:
        nonlocal afresh
        afresh = server.should_exit = True

    config = uvicorn.Config(
        from_settings(settings, start_afresh=start_afresh),
        http="h11",  # which refuses endless headers; httptools takes them all
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=120,
    )
    server = uvicorn.Server(config)
    memory.keep()
    announce(settings, f"http://{f'[{host}]' if ':' in host else host}:{port}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises the signal again when it has finished
    server.run(sockets=[listening])
    if afresh:
        kept.set_inheritable(True)
        where = ["--host", host, "--port", str(port), "--fd", str(kept.fileno())]
        os.execv(sys.executable, [sys.executable, "-m", "mt_photos_ml", "serve", *where])
    return 0


def _port(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is no port: expected 1 to 65535")
    return int(value)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # for all connections: asyncio does it only where it made the socket, and a reply in two pieces would wait 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening


def models_list(settings: Settings, chosen: argparse.Namespace) -> int:
    """What is known, what is there, what is in use."""
    from rich.console import Console
    from rich.table import Table

    used = {(part.folder, part.name) for part in catalog.used(settings)}
    there = {(folder.parent.name, folder.name): folder for folder in _cached(settings.cache_folder)}
    table = Table("task", "model", "vector", "languages", "on disk", "prepared", "", box=None, pad_edge=False)
    for folder, names in catalog.KNOWN.items():
        own = sorted(name for task, name in there if task == folder and name not in names)
        for name in (*names, *own):
            clip = catalog.CLIP_MODELS.get(name) if folder == catalog.CLIP else None
            here = there.get((folder, name))
            size, ready = (_size(here), sum(map(_size, here.rglob(prepared.FOLDER)))) if here else (0, 0)
            table.add_row(
                catalog.TASK_OF_FOLDER[folder],
                name,
                str(clip.length) if clip else "",
                clip.languages if clip else "",
                f"{(size - ready) / 1e6:.0f} MB" if size else "",
                f"{ready / 1e6:.0f} MB" if ready else "",
                "in use" if (folder, name) in used else "",
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


def models_pull(settings: Settings, chosen: argparse.Namespace) -> int:
    """Downloads every part that the settings need and the cache has not."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

    from .models.hub import DownloadError, Hub

    failed = False
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        rows: dict[catalog.Part, TaskID] = {}

        def draw(part: catalog.Part, done: int, total: int) -> None:
            if part not in rows:
                rows[part] = bars.add_task(f"{part.folder} {part.kind}", total=total)
            bars.update(rows[part], completed=done, total=total)

        hub = Hub(settings.cache_folder, settings.hf_endpoint, progress=draw)
        for part in catalog.used(settings):
            try:
                bars.console.print(f"{part}: {hub.fetch(part)}", soft_wrap=True)
            except DownloadError as error:
                failed = True
                bars.console.print(f"{part}: {error}", soft_wrap=True, style="red")
    return int(failed)


def models_verify(settings: Settings, chosen: argparse.Namespace) -> int:
    """Checks the files of the parts in use against their checksums, and that the runtime can open them."""
    from .models.hub import Hub, carried_by_wheel
    from .runtime.devices import Devices
    from .runtime.ort import OrtRuntime

    hub, runtime, failed = (
        Hub(settings.cache_folder, settings.hf_endpoint),
        OrtRuntime(devices=Devices.of(settings)),
        False,
    )
    for part in catalog.used(settings):
        carried = carried_by_wheel(part) if part.missing(settings.cache_folder) else None
        wrong = None if carried else hub.verify(part)
        if wrong is None:
            try:
                runtime.open(carried or settings.cache_folder / part.folder / part.name / part.files[0])
            except Exception as error:
                wrong = str(error)
        failed |= wrong is not None
        print(f"{part}: {wrong or 'fine'}")
    return int(failed)


def models_prune(settings: Settings, chosen: argparse.Namespace) -> int:
    """Deletes the models in the cache that no setting names and prepared ones of no use here, after a question."""
    used = {(part.folder, part.name) for part in catalog.used(settings)}
    stale = []
    for path in _cached(settings.cache_folder):
        stale += prepared.stale(path) if (path.parent.name, path.name) in used else [path]
    if not stale:
        print("nothing to delete: every model in the cache is in use")
        return 0
    for path in stale:
        print(f"{_size(path) / 1e6:8.0f} MB  {path}")
    if not chosen.yes:
        try:
            if input("Delete these? [y/N] ").strip().lower() not in ("y", "yes"):
                print("nothing deleted")
                return 1
        except EOFError:
            print("\nnothing deleted: nobody answered; --yes deletes without a question")
            return 1
    for path in stale:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    print(f"deleted {len(stale)}")
    return 0


def models_optimize(settings: Settings, chosen: argparse.Namespace) -> int:
    """Writes int8 variants of a model's parts and says what they are worth; 1 where one was not kept."""
    from rich.console import Console
    from rich.table import Table

    from .app import threads_an_inference
    from .optimize import Refused, Trial, optimize

    trials: list[Trial] = []
    refused = None
    try:
        trials.extend(optimize(settings, chosen.name, chosen.photos, threads_an_inference(settings)))
    except Refused as error:  # what came before it is there
        refused = error
    table = Table("part", "int8", "ms", "MB", "mean cosine", "worst", "worst on", "", box=None, pad_edge=False)
    for trial in trials:
        table.add_row(
            trial.part.kind,
            trial.way,
            "{:.1f} → {:.1f}".format(*trial.milliseconds),
            "{:.0f} → {:.0f}".format(*trial.megabytes),
            f"{trial.mean:.4f}",
            f"{trial.worst:.4f}",
            trial.worst_on,
            "kept" if trial.kept else "rejected",
        )
    if trials:
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    kept = {trial.part: trial for trial in trials if trial.kept}
    for part in dict.fromkeys(trial.part for trial in trials):
        if part not in kept:
            print(
                f"{part}: nothing kept; a variant must reach a cosine of {settings.int8_min_mean} in the mean and "
                f"{settings.int8_min_worst} at worst, or searches and faces would come out differently"
            )
        elif kept[part].milliseconds[1] >= kept[part].milliseconds[0]:
            folder = catalog.int8_of(part.path(settings.cache_folder)).parent
            print(f"{part}: no quicker on this processor; delete {folder}, and the original is used")
        else:
            print(f"{part}: used where INT8_TASKS names {catalog.TASK_OF_FOLDER[part.folder]}")
    if refused:
        print(f"mt-photos-ml: {refused}", file=sys.stderr)
    return int(refused is not None or any(trial.part not in kept for trial in trials))


def _cached(cache: Path) -> Iterator[Path]:
    """The folders of models in the cache."""
    for folder in catalog.KNOWN:
        if (cache / folder).is_dir():
            yield from sorted(path for path in (cache / folder).iterdir() if path.is_dir())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def doctor(settings: Settings, chosen: argparse.Namespace) -> int:
    """One line a check; the exit code is 1 where something is broken."""
    from .doctor import checks

    broken = False
    for state, what, detail in checks(settings):
        broken |= state == "FAIL"
        print(f"{state:4}  {what}: {detail}")
    return int(broken)

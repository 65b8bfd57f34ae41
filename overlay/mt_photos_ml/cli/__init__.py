# SPDX-License-Identifier: AGPL-3.0-only
"""The command mt-photos-ml: serve, doctor, bench and models."""

import contextlib
import os
import sys
from collections.abc import Sequence

import click

from .. import version
from ..server.startup import check_machine


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process."""
    _use_utf8()
    check_machine()
    if (arguments or sys.argv[1:])[:1] != ["serve"]:  # keeps the service's parent process small
        from . import bench, doctor, models

        for command in (doctor.doctor, bench.bench, models.models):
            _group.add_command(command)
    _group(arguments, prog_name="mt-photos-ml")


def _use_utf8() -> None:
    """Restarts Python in UTF-8 mode if the locale, such as zh_CN.GBK, gives file names another encoding, because
    onnxruntime accepts only UTF-8. Output keeps the terminal's encoding; characters that it lacks are escaped."""
    with contextlib.suppress(AttributeError):  # not one of Python's own streams
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.ignore_environment:
        os.environ["PYTHONUTF8"] = "1"
        if sys.stdout.encoding.lower() != "ascii":  # with the locale C, the terminal may still be UTF-8
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _port(value: str | int) -> int:
    if not str(value).isdecimal() or not 1 <= int(value) <= 65535:
        raise click.BadParameter(f"{value} is not a port: expected 1 to 65535")
    return int(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), message="%(version)s")
def _group() -> None:
    """The MT Photos recognition service."""


@_group.command()
@click.option("--host", metavar="ADDRESS", default="::", help="where to listen (default: all addresses, IPv6 and IPv4)")
@click.option("--port", type=_port, metavar="PORT", help="port to listen on (default: HTTP_PORT, else 8060)")
def serve(host: str, port: int | None) -> None:
    """Run the service."""
    from gunicorn.app.wsgiapp import run

    from ..server.startup import settings_or_exit

    port = port or settings_or_exit(check=False).http_port
    os.environ |= {"IMMICH_HOST": host, "IMMICH_PORT": str(port)}  # the configuration reads them, as in the image
    sys.argv[1:] = ["--config", "python:mt_photos_ml.server.gunicorn_conf"]
    run(prog="mt-photos-ml serve")

# SPDX-License-Identifier: AGPL-3.0-only
"""The command mt-photos-ml: serve, doctor, bench and models."""

import os
import socket
import sys

import click

from .. import version
from ..server import logs


def _port(value: str | int) -> int:
    if not str(value).isdecimal() or not 1 <= int(value) <= 65535:
        raise click.BadParameter(f"{value} is no port: expected 1 to 65535")
    return int(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), message="%(version)s")
def main() -> None:
    """The MT Photos recognition service."""


@main.command()
@click.option("--host", default="0.0.0.0", help="address to listen on (default: all of IPv4)")
@click.option("--port", type=_port, help="port to listen on (default: HTTP_PORT, else 8060)")
@click.option("--fd", type=int, hidden=True)  # the socket, which the supervising process holds
def serve(host: str, port: int | None, fd: int | None) -> None:
    """Run the service."""
    if fd is None:
        port = port or _port_of_the_environment()
        from ..server.supervise import bind, supervise

        try:
            listening = bind(host, port)
        except OSError as error:
            sys.exit(f"mt-photos-ml: can't listen on {host} port {port}: {error.strerror}")
        if hasattr(os, "fork"):
            logs.to_stderr("info", os.environ.get("LOG_FORMAT", "text"))
            command = [sys.executable, "-m", "mt_photos_ml", "serve", "--host", host, "--port", str(port)]
            sys.exit(supervise(command, listening))
    else:
        listening = socket.socket(fileno=fd)
    from ..server.serve import serve
    from .terminal import settings_or_exit

    settings = settings_or_exit(check=True)
    sys.exit(serve(settings, host, listening))


def _port_of_the_environment() -> int:
    try:
        return _port(os.environ.get("HTTP_PORT") or 8060)
    except click.BadParameter:
        from .terminal import settings_or_exit

        return settings_or_exit().http_port  # which says what is expected, and ends


if sys.argv[1:2] != ["serve"]:  # the process that supervises imports next to nothing
    from .bench import bench
    from .doctor import doctor
    from .models import models

    for command in (doctor, bench, models):
        main.add_command(command)

# SPDX-License-Identifier: AGPL-3.0-only
"""Logs at the start which settings are set, which names look misspelt, and what to do next."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from .. import version
from ..models.choice import clip_vector_length, in_use, is_demo
from ..settings import KEY_FILE, Settings, variable
from . import official

log = logging.getLogger("mt_photos_ml")

_ALSO_READ = {KEY_FILE, "FORWARDED_ALLOW_IPS", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
"""Variables that the service or its libraries read, besides the settings."""
_OF_UPSTREAM = {
    f"MACHINE_LEARNING_{name}"
    for name in ("MODEL_TTL_POLL_S", "MODEL_INTER_OP_THREADS", "PRELOAD__OCR__MAX_RESOLUTION")
}
"""Settings of upstream's app that look like misspelt ones of ours; its other settings don't."""


def announce(settings: Settings, *, in_image: bool, is_exposed: bool) -> None:
    """Writes the first lines of the log. is_exposed: whether other machines can reach the service."""
    where, address = _places(settings, in_image)
    log.info("mt-photos-ml %s on %s, as %s", version(), where, settings.instance_name)
    if settings.key_warning and is_exposed:
        log.warning("%s", settings.key_warning)
    unsaid = {"api_auth_key"} if in_image else {"api_auth_key", "immich_host", "immich_port"}  # `serve` sets these
    given = {variable(field) for field in settings.model_fields_set - unsaid}
    told = ", ".join(sorted(f"{name.upper()}={value}" for name, value in os.environ.items() if name.upper() in given))
    log.info("settings: %s", re.sub("//[^/@]*@", "//", told) or "the defaults")  # without the password of a mirror
    known = dict(official.told(os.environ, in_image=in_image))
    for name, meaning in known.items():
        log.info("%s, a variable of the official service, %s", name, meaning)
    others = _OF_UPSTREAM if in_image and settings.immich_api != "off" else set[str]()
    for name, meant in misspelt(name for name in os.environ.keys() - known.keys() if name.upper() not in others):
        log.warning("%s is not a setting and is ignored; did you mean %s?", name, meant)
    refs = in_use(settings)
    for task in dict.fromkeys(role.task for role in refs):
        names = dict.fromkeys(ref.name for role, ref in refs.items() if role.task == task)
        length = f", vectors of {clip_vector_length(settings) or '?'} numbers" if task == "clip" else ""
        log.info("%s: %s%s", task, ", ".join(names), length)
    if is_demo(settings):
        log.warning("this is the demo: it recognises only colours and drawn faces")
    log.info("models are kept in %s", settings.cache_folder)
    log.info("next: open %s in a browser; it says what to enter in MT Photos, and you can try a photo there", address)


def _places(settings: Settings, in_image: bool) -> tuple[str, str]:
    """What the service listens on, and its address for a browser."""
    if in_image:
        return "the port of the container", "http://ADDRESS-OF-THIS-MACHINE:8060 (the port that it is published at)"
    host, port = settings.immich_host.strip("[]"), settings.immich_port
    if host in ("0.0.0.0", "::"):
        return f"port {port}", f"http://ADDRESS-OF-THIS-MACHINE:{port}"
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return where, where


def misspelt(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The variables whose names look like a setting's but are none, each with the setting that it looks like."""
    known = {_core(name): name for name in [*map(variable, Settings.model_fields), *_ALSO_READ]}
    for name in names:
        if "_" in name and name.upper() not in known.values():
            core = _core(name.upper())
            akin = [other for other in known if other.partition("_")[0] == core.partition("_")[0]]
            for found in get_close_matches(core, akin, 1, 0.72) or get_close_matches(core, known, 1, 0.85):
                yield name, known[found]


def _core(name: str) -> str:
    """The name without a prefix that many settings have, because it would make them all look alike."""
    return name.removeprefix("MACHINE_LEARNING_").removeprefix("IMMICH_")

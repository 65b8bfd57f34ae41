# SPDX-License-Identifier: AGPL-3.0-only
"""What the log says at the start: what is set, what was not understood, and what to do next."""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from .. import version
from ..models.choice import clip_vector_length, in_use
from ..settings import KEY_FILE, Settings, variable

log = logging.getLogger("mt_photos_ml")

_OTHERS = {KEY_FILE, "FORWARDED_ALLOW_IPS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
"""Settings, too, but not of ours alone."""


def announce(settings: Settings, where: str, address: str, *, is_exposed: bool = True) -> None:
    """where: what the service listens on. address: what a person types into a browser."""
    log.info("mt-photos-ml %s on %s", version(), where)
    if settings.key_warning and is_exposed:
        log.warning("%s", settings.key_warning)
    given = sorted(variable(field) for field in settings.model_fields_set - {"api_auth_key"})
    values = {name.upper(): value for name, value in os.environ.items()}
    told = ", ".join(f"{name}={values[name]}" for name in given if name in values)
    log.info("set: %s", re.sub("//[^/@]*@", "//", told) or "nothing")  # without the password of a mirror
    for name, meant in misspelt(os.environ):
        log.warning("%s is no setting and does nothing; is %s meant?", name, meant)
    refs = in_use(settings)
    for task in dict.fromkeys(network.switch for network in refs):
        names = dict.fromkeys(ref.name for network, ref in refs.items() if network.switch == task)
        length = f", vectors of {clip_vector_length(settings) or '?'} numbers" if task == "clip" else ""
        log.info("%s: %s%s", task, ", ".join(names), length)
    if settings.demo:
        log.warning("this is the demo: it knows colours and drawn faces only")
    log.info("models are kept in %s", settings.cache_folder)
    log.info("next: open %s in a browser; it says what to type into MT Photos and takes a photo to try", address)


def misspelt(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Which of these variables look like settings without being one, and the settings that they look like."""
    known = {_core(name): name for name in [*map(variable, Settings.model_fields), *_OTHERS]}
    for name in names:
        if "_" not in name or name.upper() in known.values():
            continue
        core = _core(name.upper())
        akin = [other for other in known if other.partition("_")[0] == core.partition("_")[0]]
        for found in get_close_matches(core, akin, 1, 0.72) or get_close_matches(core, known, 1, 0.85):
            yield name, known[found]


def _core(name: str) -> str:
    """Without what many names begin with, by which they would all be alike."""
    return name.removeprefix("MACHINE_LEARNING_").removeprefix("IMMICH_")

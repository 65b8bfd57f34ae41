# SPDX-License-Identifier: AGPL-3.0-only
"""The command doctor: checks settings, key, decoders, devices, cache, models, network."""

import shutil
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
from PIL import features

from ..models.catalog import OCR_RELEASE
from ..models.checks import check_models
from ..models.choice import in_use
from ..models.hub import DEFAULT_ENDPOINTS
from ..models.sources import file_in_wheel
from ..runtime.devices import Devices
from ..server.startup import settings_or_exit
from ..settings import Settings, SettingsError

Check = tuple[str, str, str]
"""ok, warn or FAIL; what was looked at; what was found."""


@click.command()
def doctor() -> None:
    """Check settings, decoders, devices, cache, network."""
    broken = False
    for state, what, detail in checks(settings_or_exit(check=False)):
        broken |= state == "FAIL"
        print(f"{state:4}  {what}: {detail}")
    sys.exit(broken)


def checks(settings: Settings) -> Iterator[Check]:
    """Everything that a service with these settings needs, one after the other."""
    try:
        check_models(settings)
        yield "ok", "settings", f"tasks {', '.join(sorted(settings.tasks))}, port {settings.http_port}"
    except SettingsError as error:
        yield "FAIL", "settings", str(error)
    yield "warn" if settings.key_warning else "ok", "key", settings.key_warning or "of your own"
    yield from _decoders()
    yield _runtime(settings)
    yield _cache(settings.cache_folder)
    absent = False
    for ref in in_use(settings).values():
        if not ref.missing(settings.cache_folder) or file_in_wheel(ref):
            yield "ok", "model", str(ref)
            continue
        absent = True
        if ref.is_known:
            yield "warn", "model", f"{ref} is downloaded when it is first needed"
        else:
            yield "FAIL", "model", f"{ref} is not known"
    yield from _endpoints(settings, absent)


def _decoders() -> Iterator[Check]:
    for kind, feature in (("JPEG", "jpg"), ("PNG", "zlib"), ("TIFF", "libtiff"), ("WebP", "webp")):
        there = features.check(feature)
        yield "ok" if there else "FAIL", "decoder", kind if there else f"{kind} is missing in this build of Pillow"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow before 11.3 does not know the word
        avif = features.check("avif")
    yield "ok" if avif else "warn", "decoder", "AVIF" if avif else "AVIF is missing: it needs Pillow 11.3 or newer"
    try:
        import pillow_heif

        yield "ok", "decoder", f"HEIC (pillow-heif {pillow_heif.__version__})"
    except ImportError:
        yield "warn", "decoder", "HEIC is missing: pip install pillow-heif"


def _runtime(settings: Settings) -> Check:
    try:
        return "ok", "runtime", Devices.of(settings).describe()
    except ImportError as error:
        return "FAIL", "runtime", f"{error}; install the extra cpu, cuda or openvino"


def _cache(folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".written").touch()
        (folder / ".written").unlink()
    except OSError as error:
        return "FAIL", "cache", f"{folder} can't be written: {error.strerror}"
    return "ok", "cache", f"{folder}, {shutil.disk_usage(folder).free / 1e9:.1f} GB free"


def _endpoints(settings: Settings, needed: bool) -> Iterator[Check]:
    hubs = [settings.hf_endpoint] if settings.hf_endpoint else DEFAULT_ENDPOINTS
    reached = False
    for address in (*hubs, "/".join(OCR_RELEASE.split("/")[:3])):
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
        except OSError as error:
            if not isinstance(error, urllib.error.HTTPError):  # else it answered
                yield "warn", "endpoint", f"{address}: {getattr(error, 'reason', error)}"
                continue
        reached = True
        yield "ok", "endpoint", address
    if needed and not reached:
        yield "FAIL", "endpoint", "a model is missing and none can be reached: set HF_ENDPOINT, or put the files there"

# SPDX-License-Identifier: AGPL-3.0-only
"""The command doctor: checks settings, key, decoders, devices, cache, models, network."""

import shutil
import sys
import warnings
from collections.abc import Iterator
from tempfile import TemporaryFile

import click
from PIL import features

from ..models.catalog import FACES, OCR, OCR_RELEASE, ModelRef
from ..models.checks import check_models
from ..models.choice import in_use
from ..models.hub import DEFAULT_ENDPOINTS
from ..models.network import SourceError, by_reason, without_login
from ..models.sources import file_in_wheel, offered_files
from ..runtime import Runtime
from ..runtime.devices import Devices
from ..runtime.npu import NpuRuntime
from ..runtime.ort import OrtRuntime
from ..runtime.shaped import ShapedRuntime
from ..runtime.times import read_times
from ..server.startup import settings_or_exit
from ..settings import Settings, SettingsError

Check = tuple[str, str, str]
"""ok, warn or FAIL; what was checked; the result."""

_FEATURES = {"JPEG": "jpg", "PNG": "zlib", "TIFF": "libtiff", "WebP": "webp", "AVIF": "avif"}
"""Pillow's names of its decoders."""


@click.command()
def doctor() -> None:
    """Check settings, key, decoders, devices, cache, models and network."""
    broken = False
    for state, what, detail in checks(settings_or_exit(check=False)):
        broken |= state == "FAIL"
        print(f"{state:4}  {what}: {detail}")
    sys.exit(broken)


def checks(settings: Settings) -> Iterator[Check]:
    """Checks one by one what a service with these settings needs."""
    try:
        check_models(settings)
        yield "ok", "settings", f"tasks {', '.join(sorted(settings.tasks))}, port {settings.http_port}"
    except SettingsError as error:
        yield "FAIL", "settings", str(error)
    yield "warn" if settings.key_warning else "ok", "key", settings.key_warning or "your own"
    yield from _decoders()
    try:
        devices = Devices.of(settings)
        yield "ok", "runtime", devices.describe()
        yield from _devices(settings, devices)
    except ImportError as error:
        yield "FAIL", "runtime", f"{error}; install the extra cpu, cuda or openvino"
    folder = settings.cache_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
        yield "ok", "cache", f"{folder}, {shutil.disk_usage(folder).free / 1e9:.1f} GB free"
    except OSError as error:
        how = "make it writable, or set MACHINE_LEARNING_CACHE_FOLDER to another folder"
        yield "FAIL", "cache", f"{folder} can't be written: {error.strerror}; {how}"
    absent = [ref for ref in in_use(settings).values() if ref.missing(folder) and not file_in_wheel(ref)]
    for ref in in_use(settings).values():
        if ref not in absent:
            yield "ok", "model", str(ref)
        elif ref.is_known:
            yield "warn", "model", f"{ref} will be downloaded when it is first needed"
        else:
            yield "FAIL", "model", f"{ref} is not a known model"
    yield from _endpoints(settings, bool(absent))


def _decoders() -> Iterator[Check]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow before 11.3 does not know AVIF
        for kind, feature in _FEATURES.items():
            there, without = features.check(feature), "warn" if kind == "AVIF" else "FAIL"
            yield "ok" if there else without, "decoder", kind if there else f"{kind} is missing in this build of Pillow"
    try:
        import pillow_heif

        yield "ok", "decoder", f"HEIC (pillow-heif {pillow_heif.__version__})"
    except ImportError:
        yield "warn", "decoder", "HEIC is missing: pip install pillow-heif"


def _devices(settings: Settings, devices: Devices) -> Iterator[Check]:
    """Which device each model runs on, if there is more than the CPU or a setting names one, and the measured times."""
    runtime: Runtime = ShapedRuntime(devices, OrtRuntime())
    runtime = NpuRuntime(devices.npu, runtime) if devices.npu else runtime
    is_named = not {*devices.wanted.values()} <= {"auto", "cpu"}
    for ref in in_use(settings).values() if devices.is_accelerated or is_named else ():
        path = ref.path(settings.cache_folder)
        device = devices.device_of(path)
        times = read_times(path, device) if device else None
        ms = f" ({device.name} {times.device:.1f} ms, CPU {times.processor:.1f})" if device and times else ""
        yield "ok", "device", f"{ref} runs on {runtime.runs_on(path)}{ms}"
    for said in devices.refused:
        yield "warn", "device", said


def _endpoints(settings: Settings, needed: bool) -> Iterator[Check]:
    hubs = [settings.hf_endpoint] if settings.hf_endpoint else DEFAULT_ENDPOINTS
    listed, file = ModelRef(FACES, "buffalo_l", "detection"), ModelRef(OCR, "PP-OCRv5_mobile", "detection")
    asked, failures = [*((listed, address) for address in hubs), (file, OCR_RELEASE)], list[tuple[str, SourceError]]()
    for ref, source in asked:
        try:
            offered_files(ref, source)
            yield "ok", "endpoint", without_login(source)
        except SourceError as error:
            failures.append((source, error))
    for said in by_reason(failures):
        yield "warn", "endpoint", said
    if needed and len(failures) == len(asked):
        yield "FAIL", "endpoint", "a model is missing and no source answers: set HF_ENDPOINT, or add it by hand"

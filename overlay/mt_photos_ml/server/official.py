# SPDX-License-Identifier: AGPL-3.0-only
"""Variables of MT Photos' official service: what they mean here, for users who keep their old configuration."""

from collections.abc import Iterator, Mapping

from ..settings import DEFAULT_CLIP, SettingsError

TTL, PRELOAD = "MACHINE_LEARNING_MODEL_TTL", "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL"

_DO_NOTHING = {
    "MT_USE_DML": "DirectML needs Windows; OCR_DEVICE, CLIP_DEVICE and FACE_DEVICE choose what a task runs on",
    "CLIP_MODEL": "CLIP_VISUAL_MODEL_NAME and CLIP_TEXTUAL_MODEL_NAME choose the model",
    "MODEL_PREFIX": "CLIP_VISUAL_MODEL_NAME and CLIP_TEXTUAL_MODEL_NAME choose the model",
    "OCR_CUDA_DEVICE_ID": "MACHINE_LEARNING_DEVICE_ID chooses the card",
    "OCR_DET_": "OCR_MODEL_NAME chooses the model",
    "OCR_REC_": "OCR_MODEL_NAME chooses the model",
    "OCR_CLS_": "OCR_MODEL_NAME chooses the model",
}


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that its variables stand for, except those that are set themselves. Raises SettingsError."""
    found = dict[str, str]()
    if seconds := environment.get("SERVER_RESTART_TIME"):
        if not seconds.strip().isdecimal():
            raise SettingsError(f"SERVER_RESTART_TIME={seconds}: expected seconds; here it is called {TTL}")
        found[TTL] = seconds
    if environment.get("AUTO_LOAD_TXT_MODAL") == "on":
        found[PRELOAD] = environment.get("CLIP_TEXTUAL_MODEL_NAME") or DEFAULT_CLIP
    return {name: value for name, value in found.items() if not environment.get(name)}


def told(environment: Mapping[str, str], *, in_image: bool) -> Iterator[tuple[str, str]]:
    """Each of its variables that is set, and what it does here, for the log."""
    for name, meant in (("SERVER_RESTART_TIME", TTL), ("AUTO_LOAD_TXT_MODAL", PRELOAD)):
        if environment.get(name):
            value = settings_of(environment).get(meant)
            yield name, f"sets {meant}={value}" if value else "is ignored"
    for name in environment:
        if why := next((why for begin, why in _DO_NOTHING.items() if name.startswith(begin)), None):
            yield name, f"is ignored: {why}"
    if in_image and environment.get("HTTP_PORT"):
        yield "HTTP_PORT", "is ignored in the image: Docker publishes its port 3003 as another one with -p 8060:3003"

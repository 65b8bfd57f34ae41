# SPDX-License-Identifier: AGPL-3.0-only
"""Which models the settings choose."""

import json

from ..settings import Settings
from ..settings.values import clean_name
from .catalog import CLIP, CLIP_MODELS, ROLES, ModelRef, Role
from .variants import INT8, variant_of


def model_of(settings: Settings, role: Role) -> ModelRef:
    """The model of one network; its int8 variant if the settings ask for it and it exists."""
    ref = ModelRef(role.group, getattr(settings, role.name), role.type)
    wants_int8 = role.task in settings.int8_tasks and variant_of(ref.path(settings.cache_folder)).is_file()
    return ModelRef(ref.group, ref.name, ref.type, INT8) if wants_int8 else ref


def is_demo(settings: Settings) -> bool:
    """Whether a model in use is one of the demo's, which recognise drawings and colours only."""
    names = settings.clip_visual_model_name, settings.face_detection_model_name, settings.face_recognition_model_name
    return any(name.startswith("demo-") for name in names)


def in_use(settings: Settings) -> dict[Role, ModelRef]:
    """The models of all tasks that are switched on."""
    return {role: model_of(settings, role) for role in ROLES if role.task in settings.tasks}


def preload_names(settings: Settings, role: Role) -> list[str]:
    """The models that the environment asks to load at the start, in use or not."""
    names: str = getattr(settings, role.preload) or ""
    return [clean_name(name.strip()) for name in names.split(",")] if names else []


def preloaded(settings: Settings) -> list[ModelRef]:
    """The models in use that the environment asks to load at the start."""
    return [ref for role, ref in in_use(settings).items() if ref.name in preload_names(settings, role)]


def clip_vector_length(settings: Settings) -> int | None:
    """The vector length of the CLIP model in use; None for a user's own model that is not in the cache yet."""
    name = settings.clip_visual_model_name
    if name in CLIP_MODELS:
        return CLIP_MODELS[name].length
    try:
        return int(json.loads((settings.cache_folder / CLIP / name / "config.json").read_bytes())["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

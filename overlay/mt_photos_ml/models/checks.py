# SPDX-License-Identifier: AGPL-3.0-only
"""Checks at the start that the chosen models are available and fit each other."""

import difflib

from ..settings import Settings, SettingsError, variable
from .catalog import CLIP, CLIP_MODELS, CN_CLIP, KNOWN, ROLES, ModelRef
from .choice import clip_vector_length, in_use, preload_names
from .languages import flores_code
from .variants import INT8, is_fresh


def check_models(settings: Settings, *, preloads_others: bool = False) -> None:
    """Raises SettingsError for the first problem. preloads_others: whether models that are not in use may be preloaded,
    because upstream's API uses them."""
    for role, ref in in_use(settings).items():
        if not ref.is_known and ref.missing(settings.cache_folder):
            likely = difflib.get_close_matches(ref.name, KNOWN[ref.group], 1)
            if ref.name.startswith(CN_CLIP):
                how = "`mt-photos-ml models adopt FOLDER` imports it from the official service"
                raise SettingsError(f"{variable(role.name)}={ref.name}: expected this model in the cache; {how}")
            raise SettingsError(
                f"{variable(role.name)}={ref.name}: expected a model that `mt-photos-ml models list` shows"
                f"{f', such as {likely[0]}' if likely else ''}, or one of your own with "
                f"{', '.join(ref.files)} in {ref.folder(settings.cache_folder)}"
            )
    _check_preloads(settings, preloads_others)
    _check_int8(settings)
    if "clip" in settings.tasks:
        _check_clip(settings)
    if settings.clip_language is not None and flores_code(settings.clip_language) is None:
        raise SettingsError(
            f"CLIP_LANGUAGE={settings.clip_language}: expected a language such as zh-CN, en or zho_Hans"
        )


def _check_preloads(settings: Settings, preloads_others: bool) -> None:
    used = in_use(settings)
    for role in ROLES if preloads_others else used:
        names, what = preload_names(settings, role), variable(role.preload)
        if names and not preloads_others and used[role].name not in names:
            raise SettingsError(f"{what}={','.join(names)}: expected {used[role].name}, the model in use")
        for ref in (ModelRef(role.group, name, role.type) for name in names):
            if not ref.is_known and ref.missing(settings.cache_folder):
                raise SettingsError(f"{what}={ref.name}: expected models that `mt-photos-ml models list` shows")


def _check_int8(settings: Settings) -> None:
    """Raises SettingsError if a task of INT8_TASKS has no int8 variant, or if its model file has changed since."""
    for task in settings.int8_tasks & settings.tasks:
        refs = [ref for role, ref in in_use(settings).items() if role.task == task]
        variants = [ref for ref in refs if ref.variant == INT8]
        stale = [ref for ref in variants if not is_fresh(ref.path(settings.cache_folder))]
        if stale or not variants:
            ref = stale[0] if stale else next(ref for ref in refs if ref.type in ("visual", "recognition"))
            raise SettingsError(
                f"INT8_TASKS={','.join(sorted(settings.int8_tasks))}: expected an int8 variant of {ref}"
                f"{', which has changed since its variant was made' if stale else ''}; "
                f"`mt-photos-ml models optimize {ref.name} PHOTOS` makes one"
            )


def _check_clip(settings: Settings) -> None:
    visual, textual = settings.clip_visual_model_name, settings.clip_textual_model_name
    if clip_vector_length(settings) is None:
        config = settings.cache_folder / CLIP / visual / "config.json"
        raise SettingsError(f"CLIP_VISUAL_MODEL_NAME={visual}: expected the length embed_dim in {config}")
    spaces = {CLIP_MODELS[name].space if name in CLIP_MODELS else name for name in (visual, textual)}
    if len(spaces) > 1:
        raise SettingsError(
            f"CLIP_TEXTUAL_MODEL_NAME={textual}: expected {visual}, the name in CLIP_VISUAL_MODEL_NAME; "
            "vectors of different models can't be compared, so a search would find nothing"
        )

# SPDX-License-Identifier: AGPL-3.0-only
"""Known models, and settings that stop the start because no model fits them."""

from pathlib import Path

import pytest

from demo.models import build_clip
from mt_photos_ml.models import choice
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.checks import check_models
from mt_photos_ml.settings import Settings, SettingsError


def settings(cache: Path, **others: object) -> Settings:
    return Settings.model_validate({"cache_folder": cache, **others})


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", 512),
        ("XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k", 1024),
        ("nllb-clip-base-siglip__mrl", 768),
        ("nllb-clip-large-siglip__v1", 1152),
    ],
)
def test_vector_lengths_are_those_that_users_enter_in_mt_photos(tmp_path: Path, name: str, length: int) -> None:
    pair = settings(tmp_path, clip_visual_model_name=name, clip_textual_model_name=name)
    check_models(pair)
    assert choice.clip_vector_length(pair) == length


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"face_detection_model_name": "buffalo_xl"}, r"FACE_DETECTION_MODEL_NAME=buffalo_xl: expected .*buffalo_l"),
        ({"clip_textual_model_name": "ViT-B-32__openai"}, "CLIP_TEXTUAL_MODEL_NAME=ViT-B-32__openai: expected XLM"),
        ({"clip_language": "tlh"}, "CLIP_LANGUAGE=tlh"),
        ({"preload_ocr_detection": "foo"}, r"PRELOAD__OCR__DETECTION=foo: expected PP-OCRv6_small"),
    ],
)
def test_a_setting_that_fits_no_model_stops_the_start(tmp_path: Path, others: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        check_models(settings(tmp_path, **others))


def test_a_task_that_is_off_needs_no_model(tmp_path: Path) -> None:
    check_models(settings(tmp_path, clip_textual_model_name="ViT-B-32__openai", tasks=frozenset({"ocr"})))
    check_models(settings(tmp_path, preload_ocr_detection="foo", tasks=frozenset({"clip"})))


def test_a_text_encoder_fits_the_photo_encoder_that_it_was_trained_for(tmp_path: Path) -> None:
    visual, textual = "ViT-B-32__openai", "XLM-Roberta-Large-Vit-B-32"
    check_models(settings(tmp_path, clip_visual_model_name=visual, clip_textual_model_name=textual))


def test_a_users_own_model_works_from_its_folder(tmp_path: Path) -> None:
    own = settings(tmp_path, clip_visual_model_name="mine", clip_textual_model_name="mine")
    assert choice.clip_vector_length(own) is None
    build_clip(tmp_path / "clip" / "mine", dim=96)
    check_models(own)
    assert choice.clip_vector_length(own) == 96
    (tmp_path / "clip" / "mine" / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="embed_dim"):
        check_models(own)
    (tmp_path / "clip" / "mine" / "config.json").unlink()
    assert ModelRef("clip", "mine", "visual").missing(tmp_path) == ["config.json"]


def test_a_model_is_preloaded_only_if_it_is_in_use(tmp_path: Path) -> None:
    names = settings(tmp_path, preload_ocr_detection="foo, PP-OCRv6_small", preload_clip_visual="foo")
    assert list(map(str, choice.preloaded(names))) == ["ocr/PP-OCRv6_small/detection"]

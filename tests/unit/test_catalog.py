# SPDX-License-Identifier: AGPL-3.0-only
"""The catalogue: what is known of models, and what is said where a setting names none of them."""

import re
from pathlib import Path

import pytest

from demo.models import build_clip
from mt_photos_ml.models import catalog
from mt_photos_ml.models import choice as selection
from mt_photos_ml.models.checks import check_models
from mt_photos_ml.models.languages import flores_code
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
def test_the_vector_lengths_are_the_ones_that_people_enter(tmp_path: Path, name: str, length: int) -> None:
    pair = settings(tmp_path, clip_visual_model_name=name, clip_textual_model_name=name)
    check_models(pair)
    assert selection.clip_vector_length(pair) == length


def test_every_ocr_file_has_a_checksum() -> None:
    files = [file for parts in catalog.OCR_MODELS.values() for file in parts.values()]
    assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in files)
    assert all(set(parts) == {"detection", "recognition"} for parts in catalog.OCR_MODELS.values())


def test_an_unknown_name_stops_the_start_and_the_likeliest_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"FACE_DETECTION_MODEL_NAME=buffalo_xl: expected .*buffalo_l"):
        check_models(settings(tmp_path, face_detection_model_name="buffalo_xl"))


def test_a_model_of_ones_own_works_from_its_folder(tmp_path: Path) -> None:
    own = settings(tmp_path, clip_visual_model_name="mine", clip_textual_model_name="mine")
    assert selection.clip_vector_length(own) is None
    build_clip(tmp_path / "clip" / "mine", dim=96)
    check_models(own)
    assert selection.clip_vector_length(own) == 96
    (tmp_path / "clip" / "mine" / "config.json").write_text("{}")
    with pytest.raises(SettingsError, match="embed_dim"):
        check_models(own)


def test_halves_of_different_models_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CLIP_TEXTUAL_MODEL_NAME=ViT-B-32__openai: expected XLM"):
        check_models(settings(tmp_path, clip_textual_model_name="ViT-B-32__openai"))


def test_halves_of_different_models_are_nobodys_concern_where_clip_is_off(tmp_path: Path) -> None:
    check_models(settings(tmp_path, clip_textual_model_name="ViT-B-32__openai", tasks=frozenset({"ocr"})))


def test_a_text_encoder_that_was_taught_by_a_pair_belongs_to_it(tmp_path: Path) -> None:
    check_models(
        settings(
            tmp_path, clip_visual_model_name="ViT-B-32__openai", clip_textual_model_name="XLM-Roberta-Large-Vit-B-32"
        )
    )


@pytest.mark.parametrize(
    ("language", "code"),
    [("zh-CN", "zho_Hans"), ("zh", "zho_Hans"), ("zh_TW", "zho_Hant"), ("en-GB", "eng_Latn"), ("zho_Hans", "zho_Hans")],
)
def test_a_language_may_be_written_as_people_write_it(language: str, code: str) -> None:
    assert flores_code(language) == code


def test_an_unknown_language_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CLIP_LANGUAGE=tlh"):
        check_models(settings(tmp_path, clip_language="tlh"))


def test_a_model_knows_which_of_its_files_are_missing(tmp_path: Path) -> None:
    visual = catalog.ModelRef("clip", "mine", "visual")
    build_clip(tmp_path / "clip" / "mine")
    assert visual.missing(tmp_path) == []
    (tmp_path / "clip" / "mine" / "visual" / "preprocess_cfg.json").unlink()
    assert visual.missing(tmp_path) == ["visual/preprocess_cfg.json"]


def test_a_model_is_preloaded_only_if_it_is_in_use(tmp_path: Path) -> None:
    def parts(**others: object) -> list[str]:
        return list(map(str, selection.preloaded(settings(tmp_path, **others))))

    assert parts() == parts(preload_ocr_detection="foo") == []
    with pytest.raises(SettingsError, match=r"MACHINE_LEARNING_PRELOAD__OCR__DETECTION=foo: expected PP-OCRv6_small"):
        check_models(settings(tmp_path, preload_ocr_detection="foo"))
    check_models(settings(tmp_path, preload_ocr_detection="foo", tasks=frozenset({"clip"})))
    assert parts(preload_ocr_detection="foo, PP-OCRv6_small") == ["ocr/PP-OCRv6_small/detection"]

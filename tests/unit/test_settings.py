# SPDX-License-Identifier: AGPL-3.0-only
"""The settings: what the environment may say, and what is said of what it may not."""

from pathlib import Path

import pytest

from mt_photos_ml.settings import Settings, SettingsError, clean_name, load

KEY_RULE = "a key without spaces around it and without line breaks"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)
    monkeypatch.delenv("API_AUTH_KEY_FILE", raising=False)


def test_without_variables_everything_is_as_the_readme_says() -> None:
    settings = load()
    assert settings.api_auth_key == "mt_photos_ai_extra"
    assert settings.http_port == 8060
    assert settings.tasks == {"ocr", "clip", "faces"}
    assert settings.ocr_model_name == "PP-OCRv6_small"
    assert settings.face_min_score == 0.65
    assert settings.clip_textual_model_name == settings.clip_visual_model_name
    assert not settings.open_to_all


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HTTP_PORT", "http", "integer"),
        ("HTTP_PORT", "70000", "65535"),
        ("OCR_MIN_SCORE", "1.5", "less than or equal to 1"),
        ("FACE_MIN_SCORE", "high", "number"),
        ("TASKS", "ocr,cats", "ocr, clip, faces"),
        ("HF_ENDPOINT", "hf-mirror.com", "https://"),
        ("HF_ENDPOINT", "https://", "https://"),
        ("HF_ENDPOINT", "http://a b", "https://"),
        ("HF_ENDPOINT", "http://a:99999999", "https://"),
        ("MACHINE_LEARNING_CACHE_FOLDER", "/etc/hosts", "a folder"),
        ("MACHINE_LEARNING_CACHE_FOLDER", "~nobody-of-that-name/x", "a folder"),
        ("MACHINE_LEARNING_MODEL_TTL", "-1", "0"),
        ("MACHINE_LEARNING_REQUEST_THREADS", "0", "1"),
        ("MAX_UPLOAD_MB", "0", "1"),
        ("IMMICH_LOG_LEVEL", "loud", "debug"),
        ("CLIP_VISUAL_MODEL_NAME", "...", "name of a model"),
        ("INT8_TASKS", "ocr", "clip, faces"),
        ("INT8_TASKS", "clip;faces", "clip, faces"),
        ("INT8_MIN_MEAN", "99", "less than or equal to 1"),
        ("INT8_MIN_WORST", "good", "number"),
        ("MACHINE_LEARNING_DEVICE_ID", "GPU.0", "such as 0"),
        ("MACHINE_LEARNING_DEVICE_IDS", "0;1", "such as 0,1"),
        ("MACHINE_LEARNING_DEVICE_IDS", "0,,1", "such as 0,1"),
        ("MACHINE_LEARNING_OPENVINO_PRECISION", "INT4", "'FP32' or 'FP16'"),
        ("MACHINE_LEARNING_WORKERS", "0", "1"),
        ("IMMICH_PORT", "99999", "65535"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    (line,) = str(caught.value).split(": expected ")[0:1]
    assert line == f"{name}={value}"
    assert expected in str(caught.value)


def test_a_line_break_in_a_value_does_not_break_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACE_MIN_SCORE", "0.5\n2026-11-25 INFO all is well")
    with pytest.raises(SettingsError) as caught:
        load()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [" spaced ", "two\nlines"])
def test_a_key_that_cannot_be_used_is_not_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("API_AUTH_KEY", value)
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value) == f"API_AUTH_KEY: expected {KEY_RULE}"


def test_the_key_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("of a file\n")
    monkeypatch.setenv("API_AUTH_KEY_FILE", str(secret))
    assert load().api_auth_key == "of a file"
    assert "of a file" not in repr(load())
    secret.write_text(" two\nlines ")
    with pytest.raises(SettingsError) as caught:
        load()
    assert str(caught.value) == f"API_AUTH_KEY: expected {KEY_RULE}"


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        (None, None, "No such file"),
        (b"", None, "empty"),
        (b" \n", None, "empty"),
        (b"\xff\xfe", None, "not text"),
        (b"mine", "another", "API_AUTH_KEY is set too"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, key: str | None, expected: str
) -> None:
    secret = tmp_path / "key"
    if content is not None:
        secret.write_bytes(content)
    if key is not None:
        monkeypatch.setenv("API_AUTH_KEY", key)
    monkeypatch.setenv("API_AUTH_KEY_FILE", str(secret))
    with pytest.raises(SettingsError, match=expected) as caught:
        load()
    assert str(caught.value).startswith(f"API_AUTH_KEY_FILE={secret}: expected ")
    assert "another" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_key_is_a_mistake(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("API_AUTH_KEY", value)
    with pytest.raises(SettingsError, match=r"API_AUTH_KEY.*no-key"):
        load()


def test_no_key_opens_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_AUTH_KEY", "no-key")
    assert load().open_to_all


def test_another_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")
    monkeypatch.setenv("OCR_MODEL_NAME", "")
    assert load().hf_endpoint is None
    assert load().ocr_model_name == "PP-OCRv6_small"


def test_every_variable_that_is_wrong_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PORT", "x")
    monkeypatch.setenv("FACE_MIN_SCORE", "x")
    with pytest.raises(SettingsError) as caught:
        load()
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == ["HTTP_PORT", "FACE_MIN_SCORE"]


def test_tasks_are_a_list_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS", "OCR, faces,")
    assert load().tasks == {"ocr", "faces"}


def test_int8_is_used_only_for_the_tasks_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().int8_tasks == frozenset()
    assert (load().int8_min_mean, load().int8_min_worst) == (0.99, 0.98)
    monkeypatch.setenv("INT8_TASKS", " Faces,clip ")
    assert load().int8_tasks == {"clip", "faces"}


def test_names_are_cleaned_as_the_base_image_cleans_them() -> None:
    assert clean_name("immich-app/ViT-B-32::openai") == "ViT-B-32__openai"
    assert clean_name("../../etc/passwd") == "passwd"
    assert "." not in clean_name("..")


def test_the_cache_folder_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_LEARNING_CACHE_FOLDER", "~/models")
    assert load().cache_folder == Path.home() / "models"

# SPDX-License-Identifier: AGPL-3.0-only
"""Settings from the environment, and the messages for values that can't be used."""

from pathlib import Path

import pytest

from mt_photos_ml.settings import Settings, SettingsError, load
from mt_photos_ml.settings.values import clean_name

KEY_RULE = "a key without spaces around it and without line breaks"


class Environment:
    """The variables of this process, without any of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setenv
        for name in ("API_AUTH_KEY_FILE", *(str(field.validation_alias) for field in Settings.model_fields.values())):
            monkeypatch.delenv(name, raising=False)

    def load(self, **variables: object) -> Settings:
        """The settings with these variables set."""
        for name, value in variables.items():
            self._set(name, str(value))
        return load()

    def error(self, **variables: object) -> str:
        """The message for these variables."""
        with pytest.raises(SettingsError) as caught:
            self.load(**variables)
        return str(caught.value)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(monkeypatch)


def test_without_variables_the_documented_defaults_apply(env: Environment) -> None:
    settings = env.load()
    assert (settings.api_auth_key, settings.open_to_all, settings.http_port) == ("mt_photos_ai_extra", False, 8060)
    assert settings.tasks == {"ocr", "clip", "faces"}
    assert not settings.int8_tasks
    assert (settings.ocr_model_name, settings.face_min_score) == ("PP-OCRv6_small", 0.65)
    assert settings.clip_textual_model_name == settings.clip_visual_model_name
    assert (settings.int8_min_mean, settings.int8_min_worst) == (0.99, 0.98)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HTTP_PORT", "70000", "65535"),
        ("OCR_MIN_SCORE", "1.5", "less than or equal to 1"),
        ("TASKS", "ocr,cats", "ocr, clip, faces"),
        ("HF_ENDPOINT", "hf-mirror.com", "https://"),
        ("HF_ENDPOINT", "http://a b", "https://"),
        ("HF_ENDPOINT", "http://a:99999999", "https://"),
        ("MACHINE_LEARNING_CACHE_FOLDER", "/etc/hosts", "a folder"),
        ("MACHINE_LEARNING_CACHE_FOLDER", "~nobody-of-that-name/x", "a folder"),
        ("MACHINE_LEARNING_MODEL_TTL", "-1", "0"),
        ("IMMICH_LOG_LEVEL", "loud", "debug"),
        ("CLIP_VISUAL_MODEL_NAME", "...", "name of a model"),
        ("INT8_TASKS", "clip;faces", "clip, faces"),
        ("MACHINE_LEARNING_DEVICE_ID", "GPU.0", "such as 0"),
        ("MACHINE_LEARNING_DEVICE_IDS", "0,,1", "such as 0,1"),
        ("MACHINE_LEARNING_OPENVINO_PRECISION", "INT4", "'FP32' or 'FP16'"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_expected(
    env: Environment, name: str, value: str, expected: str
) -> None:
    line, _, rule = env.error(**{name: value}).partition(": expected ")
    assert line == f"{name}={value}"
    assert expected in rule


def test_every_wrong_variable_has_exactly_one_line(env: Environment) -> None:
    lines = env.error(HTTP_PORT="x", FACE_MIN_SCORE="0.5\n2026-11-25 INFO all is well").splitlines()
    assert [line.split("=")[0] for line in lines] == ["HTTP_PORT", "FACE_MIN_SCORE"]


def test_the_key_may_be_in_a_file(env: Environment, tmp_path: Path) -> None:
    (secret := tmp_path / "key").write_text("of a file\n")
    settings = env.load(API_AUTH_KEY_FILE=secret)
    assert settings.api_auth_key == "of a file"
    assert "of a file" not in repr(settings)


@pytest.mark.parametrize(("value", "is_file"), [(" spaced ", False), ("two\nlines", False), ("two\nlines", True)])
def test_a_key_that_cannot_be_used_is_not_shown(env: Environment, tmp_path: Path, value: str, is_file: bool) -> None:
    (secret := tmp_path / "key").write_text(value)
    said = env.error(API_AUTH_KEY_FILE=secret) if is_file else env.error(API_AUTH_KEY=value)
    assert said == f"API_AUTH_KEY: expected {KEY_RULE}"


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        (None, {}, "No such file"),
        (b" \n", {}, "empty"),
        (b"\xff\xfe", {}, "not text"),
        (b"mine", {"API_AUTH_KEY": "another"}, "API_AUTH_KEY is set too"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named(
    env: Environment, tmp_path: Path, content: bytes | None, key: dict[str, str], expected: str
) -> None:
    secret = tmp_path / "key"
    if content is not None:
        secret.write_bytes(content)
    said = env.error(API_AUTH_KEY_FILE=secret, **key)
    assert said.startswith(f"API_AUTH_KEY_FILE={secret}: expected ")
    assert expected in said
    assert "another" not in said


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_key_is_refused_and_no_key_opens_the_api(env: Environment, value: str) -> None:
    assert "no-key" in env.error(API_AUTH_KEY=value)
    assert env.load(API_AUTH_KEY="no-key").open_to_all


def test_names_are_cleaned_as_the_base_image_cleans_them() -> None:
    assert clean_name("immich-app/ViT-B-32::openai") == "ViT-B-32__openai"
    assert clean_name("../../etc/passwd") == "passwd"
    assert "." not in clean_name("..")


def test_lists_ignore_case_a_tilde_is_expanded_and_an_empty_variable_counts_as_unset(env: Environment) -> None:
    folder = {"MACHINE_LEARNING_CACHE_FOLDER": "~/models"}
    settings = env.load(TASKS="OCR, faces,", INT8_TASKS=" Faces,clip ", HF_ENDPOINT="", OCR_MODEL_NAME="", **folder)
    assert settings.tasks == {"ocr", "faces"}
    assert settings.int8_tasks == {"clip", "faces"}
    assert settings.cache_folder == Path.home() / "models"
    assert (settings.hf_endpoint, settings.ocr_model_name) == (None, "PP-OCRv6_small")

# SPDX-License-Identifier: AGPL-3.0-only
"""Variables of the official service set ours if one means the same; the log says which of them do nothing."""

from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from mt_photos_ml.server.official import PRELOAD, TTL, settings_of, told
from mt_photos_ml.settings import DEFAULT_CLIP, SettingsError, load
from service import loaded, run_command, running, until


@pytest.mark.parametrize(
    ("environment", "meant"),
    [
        ({"SERVER_RESTART_TIME": "600"}, {TTL: "600"}),
        ({"SERVER_RESTART_TIME": "600", TTL: "30"}, {}),
        ({"AUTO_LOAD_TXT_MODAL": "on"}, {PRELOAD: DEFAULT_CLIP}),
        ({"AUTO_LOAD_TXT_MODAL": "on", "CLIP_TEXTUAL_MODEL_NAME": "RN50__openai"}, {PRELOAD: "RN50__openai"}),
        ({"AUTO_LOAD_TXT_MODAL": "off", "MT_USE_DML": "on", "SERVER_RESTART_TIME": ""}, {}),
    ],
)
def test_an_official_variable_sets_ours_unless_ours_is_set_too(
    environment: dict[str, str], meant: dict[str, str]
) -> None:
    assert settings_of(environment) == meant
    load(meant)


def test_invalid_seconds_are_refused_under_the_official_name() -> None:
    with pytest.raises(SettingsError, match=r"^SERVER_RESTART_TIME=soon: expected seconds"):
        settings_of({"SERVER_RESTART_TIME": "soon"})
    assert "SERVER_RESTART_TIME=soon" in run_command({"SERVER_RESTART_TIME": "soon"}, "models", "list").stderr


def test_http_port_is_reported_as_ignored_only_in_the_image() -> None:
    assert [name for name, _ in told({"HTTP_PORT": "8060"}, in_image=True)] == ["HTTP_PORT"]
    assert not list(told({"HTTP_PORT": "8060"}, in_image=False))


def test_the_log_says_what_each_official_variable_does(cache: Path, tmp_path: Path) -> None:
    given = {"SERVER_RESTART_TIME": "600", "AUTO_LOAD_TXT_MODAL": "on", "MT_USE_DML": "on", "OCR_DET_LANG_TYPE": "CH"}
    with running(tmp_path, {**demo_environment(cache), **given}) as service, service.client() as client:
        until(lambda: loaded(client) == ["clip/demo-colours/textual"])
        log = service.log.read_text()
    assert "SERVER_RESTART_TIME, a variable of the official service, sets MACHINE_LEARNING_MODEL_TTL=600" in log
    assert "MT_USE_DML, a variable of the official service, is ignored: DirectML" in log
    assert "OCR_DET_LANG_TYPE, a variable of the official service, is ignored: OCR_MODEL_NAME" in log
    assert "is not a setting" not in log

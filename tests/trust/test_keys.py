# SPDX-License-Identifier: AGPL-3.0-only
"""The service warns of a key that everybody knows, and writes no key to its log."""

from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from mt_photos_ml.settings import DEFAULT_KEY
from service import running


@pytest.mark.parametrize(
    ("key", "host", "said"),
    [
        (DEFAULT_KEY, "0.0.0.0", "the default one, which is public"),
        ("no-key", "0.0.0.0", "there is no API key"),
        ("mine", "0.0.0.0", None),
        (DEFAULT_KEY, "127.0.0.1", None),
    ],
)
def test_log_page_and_check_warn_of_a_default_or_missing_key_on_an_open_port(
    cache: Path, tmp_path: Path, key: str, host: str, said: str | None
) -> None:
    with running(tmp_path, {**demo_environment(cache), "API_AUTH_KEY": key}, host=host) as service:
        with service.client(None if key == "no-key" else key) as client:
            warnings = client.post("/check").json()["warnings"]
            page = client.get("/").text
        log = service.log.read_text()
    assert bool(warnings) == ('data-warned="true"' in page) == (" WARNING the" in log) == (said is not None)
    assert said is None or (said in warnings[0] and said in log)


def test_the_key_is_in_no_log_however_it_is_sent(cache: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct-horse-battery\n")
    settings = {**demo_environment(cache), "API_AUTH_KEY_FILE": str(secret), "IMMICH_LOG_LEVEL": "debug"}
    with running(tmp_path, settings, key=None) as service, service.client("correct-horse-battery") as client:
        assert client.post("/check").status_code == 200
        client.post("/check?api-key=correct-horse-battery")
        client.post("/ocr", content=b"correct-horse-battery", headers={"content-type": "text/plain"})
        client.post("/clip/txt", json={"key": "correct-horse-battery"})
        assert client.post("/check", headers={"api-key": "correct-horse-batterx"}).status_code == 401
    log = service.log.read_text()
    assert "/check 401" in log
    assert "correct-horse" not in log

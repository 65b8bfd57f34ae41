# SPDX-License-Identifier: AGPL-3.0-only
"""The key, where the settings want none; with one it is in tests/contract."""

from pathlib import Path

from demo.__main__ import environment as demo_environment
from service import running


def test_no_key_lets_everybody_in(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "API_AUTH_KEY": "no-key"}
    with running(tmp_path, settings) as service, service.client(key=None) as client:
        assert client.post("/check").json()["result"] == "pass"

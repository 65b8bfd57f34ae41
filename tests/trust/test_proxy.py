# SPDX-License-Identifier: AGPL-3.0-only
"""The service behind the nginx example in deploy/: every route works, and a guesser is known by its own address."""

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mt_photos_ml.api.middleware.auth import WRONG_KEYS_A_MINUTE
from service import KEY, Service, free_port
from trust.tally import count
from trust.traffic import alike, answered, mixed

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx" / "mt-photos-ml.conf"
pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")


@pytest.fixture
def url(service: Service, tmp_path: Path) -> Iterator[str]:
    """nginx with the example, in which name, port and certificate are filled in as a user would."""
    folder, port, key, certificate = tmp_path, free_port(), tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    site = EXAMPLE.read_text()
    for old, new in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "ml.example.org;": "localhost;",
        "/etc/ssl/certs/ml.example.org.pem": str(certificate),
        "/etc/ssl/private/ml.example.org.key": str(key),
        "http://127.0.0.1:8060": service.url,
    }.items():
        assert site.count(old) == 1, old
        site = site.replace(old, new)
    (folder / "site.conf").write_text(site)
    own = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {own} include {folder}/site.conf; }}\n"
    )
    started = subprocess.Popen(["nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    url = f"https://localhost:{port}"
    try:
        with httpx.Client(transport=httpx.HTTPTransport(verify=False, retries=8)) as client:  # until it listens
            assert client.get(f"{url}/ping").text == "pong"
        yield url
    finally:
        started.terminate()
        started.wait(20)


def test_every_route_answers_behind_tls(service: Service, url: str, tmp_path: Path) -> None:
    asked = answered(service.url, mixed(each=1))
    trusted = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
    with httpx.Client(base_url=url, headers={"api-key": KEY}, verify=trusted, timeout=60) as client:
        for request in asked:
            told = client.post(request.route, content=request.body, headers={"content-type": request.content_type})
            assert alike(told.json(), request.answer)
        assert url in client.get("/").text, "the page shows another address than the client used"
        large = client.post("/ocr", files={"file": bytes(130_000_000)})
        assert large.status_code == 413
    count("requests sent", len(asked))
    count("requests answered", len(asked))


def test_a_guesser_is_blocked_by_its_own_address(service: Service, url: str) -> None:
    with httpx.Client(base_url=url, verify=False) as guesser, service.client() as other:
        statuses = [guesser.post("/check", headers={"api-key": f"guess {i}"}).status_code for i in range(12)]
        assert statuses == [401] * WRONG_KEYS_A_MINUTE + [429] * 2
        forwarded = {"x-forwarded-for": "203.0.113.5"}
        assert other.post("/check", headers=forwarded).status_code == 200


def test_a_restart_behind_the_proxy_loses_no_request(url: str) -> None:
    with httpx.Client(base_url=url, verify=False, timeout=60) as client:
        client.headers["api-key"] = KEY
        statuses = []
        for i in range(60):
            if i % 20 == 0:
                assert client.post("/restart_v2").status_code == 200
            statuses.append(client.post("/check").status_code)
            time.sleep(0.05)
    assert statuses == [200] * 60
    count("requests sent", 60)
    count("requests answered", 60)
    count("restarts", 3)

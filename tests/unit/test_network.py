# SPDX-License-Identifier: AGPL-3.0-only
"""Downloads through the environment's proxy or past it, and the messages if the network fails."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from hub_files import NAME, REPOSITORY, VISUAL, WEIGHTS, nobody_listens
from hub_server import HubServer
from mt_photos_ml.models import transfer
from mt_photos_ml.models.hub import DownloadError, Hub
from mt_photos_ml.models.network import SourceError
from mt_photos_ml.models.transfer import RemoteFile
from photos import jpeg
from proxy_server import ProxyServer, make_certificate
from service import post, run_command, running

ELSEWHERE = "http://mirror.invalid"  # a host that only the proxy knows
ALWAYS = ("20200101000000Z", "20800101000000Z")

pytestmark = pytest.mark.usefixtures("impatient", "no_proxies")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def proxy(server: HubServer) -> Iterator[ProxyServer]:
    with ProxyServer(server.endpoint) as proxy:
        yield proxy


Mirror = Callable[..., HubServer]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Starts a mirror with TLS, whose certificate is trusted and valid between two dates."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine, which makes certificates")
    with ExitStack() as open_ones:

        def start(*dates: str) -> HubServer:
            (folder := tmp_path / "certificate").mkdir()
            certificate = make_certificate(folder, *dates)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            server = open_ones.enter_context(HubServer(certificate))
            server.repositories[f"immich-app/{NAME}"] = dict(REPOSITORY)
            return server

        yield start


def fetch(cache: Path, endpoint: str) -> bytes:
    return Hub(cache / "cache", endpoint).fetch(VISUAL).read_bytes()


def why(cache: Path, *endpoints: str) -> str:
    """The message of a download that fails, up to the first advice."""
    with pytest.raises(DownloadError) as raised:
        Hub(cache / "cache", endpoints=endpoints).fetch(VISUAL)
    return str(raised.value).partition(", or put ")[0].removeprefix("Every source failed ")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_lists_and_files_come_through_the_proxy(
    server: HubServer, proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, proxy.address.removeprefix("http://"))
    assert fetch(tmp_path, ELSEWHERE) == WEIGHTS
    redirected = urlsplit(server.endpoint).netloc
    assert proxy.asked.count("mirror.invalid") == 1 + len(server.sent)
    assert proxy.asked.count(redirected) == 1


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_mirror_with_tls_is_reached_through_a_tunnel(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    server = mirror(*ALWAYS)
    with ProxyServer(server.endpoint, "me:se/cret") as proxy:
        monkeypatch.setenv("HTTP_PROXY", nobody_listens())
        monkeypatch.setenv(name, proxy.address.replace("//", "//me:se%2Fcret@"))
        assert fetch(tmp_path, server.endpoint) == WEIGHTS
    assert set(proxy.asked) == {urlsplit(server.endpoint).netloc}


@pytest.mark.parametrize(
    ("listed", "is_direct"),
    [
        ("127.0.0.0/8", True),
        ("10.0.0.0/8, 127.0.0.1", True),
        ("*", True),
        ("127.0.0.1:{port}", True),
        ("127.0.0.1:1", False),
        ("192.168.0.0/16,127.0.0.1.example", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_hosts_in_no_proxy_are_reached_directly(
    server: HubServer,
    proxy: ProxyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    listed: str,
    is_direct: bool,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    monkeypatch.setenv(name, listed.format(port=urlsplit(server.endpoint).port))
    assert fetch(tmp_path, server.endpoint) == WEIGHTS
    assert (not proxy.asked) == is_direct


@pytest.mark.parametrize(
    ("listed", "is_direct"), [("invalid", True), (".invalid", True), ("*.invalid", True), ("valid", False)]
)
def test_no_proxy_may_name_a_domain(
    proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, is_direct: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    monkeypatch.setenv("NO_PROXY", listed)
    if is_direct:
        assert "(http://Mirror.invalid: its name can't be resolved (DNS))" in why(tmp_path, "http://Mirror.invalid")
    else:
        assert fetch(tmp_path, ELSEWHERE) == WEIGHTS


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("login", "status", "words"),
    [("me:other", 0, "HTTP 407 Proxy Authentication Required"), ("", 503, "HTTP 503 Service Unavailable")],
)
def test_a_proxy_that_refuses_is_named_without_its_password(
    proxy: ProxyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    login: str,
    status: int,
    words: str,
) -> None:
    proxy.login, proxy.status = login, status
    monkeypatch.setenv("ALL_PROXY", proxy.address.replace("//", "//me:secret@"))
    said, named = why(tmp_path, f"{scheme}://mirror.invalid"), f"the proxy {proxy.address} (ALL_PROXY)"
    blames_the_mirror = (scheme, status) == ("http", 503)  # the mirror itself may have answered that
    assert (f"{words}, through {named}" if blames_the_mirror else f"{named}: {words}") in said
    assert "secret" not in said


def test_a_socks_proxy_is_refused_with_the_reason_and_never_contacted(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setenv("ALL_PROXY", f"socks5h://me:secret@127.0.0.1:{port}")
        said = why(tmp_path, server.endpoint, "https://other.invalid")
        proxy = f"the proxy socks5h://127.0.0.1:{port} (ALL_PROXY): SOCKS5H is not supported"
        assert f"({server.endpoint}, https://other.invalid: {proxy}" in said
        assert "NO_PROXY" in said
        listening.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize("value", ["http://127.0.0.1:port", "http://me:secret@", "http://[::1"])
def test_a_proxy_that_is_not_an_address_is_reported(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    assert "HTTP_PROXY is not an address such as http://192.168.1.2:7890)" in why(tmp_path, server.endpoint)


def test_a_proxy_that_never_answers_times_out(
    server: HubServer, proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.silent = True
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    assert f"{ELSEWHERE}: the proxy {proxy.address} (HTTP_PROXY): no answer in time" in why(tmp_path, ELSEWHERE)


def test_a_dead_proxy_gets_the_same_message_in_reply_log_and_commands(tmp_path: Path) -> None:
    dead = nobody_listens()
    settings = {
        "TASKS": "faces",
        "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"),
        "HTTPS_PROXY": dead.replace("//", "//me:secret@"),
    }
    told = f"https://huggingface.co, https://hf-mirror.com: the proxy {dead} (HTTPS_PROXY): connection refused"
    with running(tmp_path, settings) as service:
        answer = post(service, "/represent", jpeg(Image.new("RGB", (64, 64))))
        with service.client() as client:
            status = client.get("/api/status").text
    assert answer.status_code == 503
    pulled, doctor = run_command(settings, "models", "pull"), run_command(settings, "doctor")
    assert (pulled.returncode, doctor.returncode) == (1, 1)
    of_doctor = next(line for line in doctor.stdout.splitlines() if "endpoint: https" in line)
    assert of_doctor.startswith(
        "warn  endpoint: https://huggingface.co, https://hf-mirror.com, https://www.modelscope.cn"
    )
    for text in (answer.json()["msg"], status, service.log.read_text(), pulled.stderr):
        assert told in text
    for text in (answer.json()["msg"], service.log.read_text(), pulled.stderr + pulled.stdout, doctor.stdout):
        assert f"the proxy {dead} (HTTPS_PROXY): connection refused" in text
        assert "secret" not in text


def test_a_login_page_is_taken_neither_for_a_list_nor_for_a_file(server: HubServer, tmp_path: Path) -> None:
    server.login_page = True
    page = f"{urlsplit(server.endpoint).netloc} sent a web page; does this network need a login in a browser first?"
    assert page in why(tmp_path, server.endpoint)
    with pytest.raises(SourceError) as raised:
        transfer.download(RemoteFile("a", f"{server.endpoint}/a", None, None), tmp_path / "a", lambda: None)
    assert str(raised.value) == page
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "answer", [b"", b"out of order", b"[]", b'{"siblings": [1]}', b'{"siblings": [{}], "sha": "1"}']
)
def test_a_reply_that_is_not_a_list_is_reported(
    server: HubServer, other: HubServer, tmp_path: Path, answer: bytes
) -> None:
    other.release["list"], server.elsewhere = answer, f"{other.release_address}/list"
    assert f"({server.endpoint}: its answer is not a list of files)" in why(tmp_path, server.endpoint)


def test_a_redirect_to_a_login_page_names_its_host(server: HubServer, other: HubServer, tmp_path: Path) -> None:
    server.elsewhere, other.login_page = f"{other.endpoint}/login", True
    assert f"{server.endpoint}: {urlsplit(other.endpoint).netloc} sent a web page;" in why(tmp_path, server.endpoint)
    server.elsewhere = f"{nobody_listens()}/login"
    host = urlsplit(server.elsewhere).netloc
    assert f"{server.endpoint}: connection refused (at {host})" in why(tmp_path, server.endpoint)


def test_a_loop_of_redirects_ends(server: HubServer, tmp_path: Path) -> None:
    server.elsewhere = f"{server.endpoint}/again"
    assert f"{server.endpoint}: its redirect can't be followed (HTTP 302 Found)" in why(tmp_path, server.endpoint)


def test_a_login_in_the_mirrors_address_is_sent_to_it_and_never_shown(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = server.endpoint.replace("//", "//me:secret@")
    with caplog.at_level("INFO"):
        assert fetch(tmp_path, address) == WEIGHTS
    assert "Basic bWU6c2VjcmV0" in server.tokens
    server.status = 500
    assert f"({server.endpoint}: HTTP 500" in why(tmp_path / "again", address)
    assert "secret" not in caplog.text + why(tmp_path / "again", address)


@pytest.mark.parametrize(
    ("dates", "name", "file", "words"),
    [
        (ALWAYS, "localhost", None, None),
        (ALWAYS, "127.0.0.1", None, "its certificate is for another name"),
        (ALWAYS, "localhost", "/nowhere.pem", "is not trusted; SSL_CERT_FILE=/nowhere.pem does not exist"),
        (ALWAYS, "localhost", "/dev/null", "is not trusted; SSL_CERT_FILE=/dev/null does not contain it"),
        (ALWAYS, "localhost", "", "is not trusted; set SSL_CERT_FILE to a file with the issuer's certificate"),
        (("20200101000000Z", "20210101000000Z"), "localhost", None, "its certificate is not valid on 20"),
        (("20700101000000Z", "20800101000000Z"), "localhost", None, "its certificate is not valid on 20"),
    ],
)
def test_the_message_says_what_is_wrong_with_a_certificate(
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dates: tuple[str, str],
    name: str,
    file: str | None,
    words: str | None,
) -> None:
    endpoint = mirror(*dates).endpoint.replace("localhost", name)
    if file is not None:
        monkeypatch.setenv("SSL_CERT_FILE", file) if file else monkeypatch.delenv("SSL_CERT_FILE")
    if words is None:
        assert fetch(tmp_path, endpoint) == WEIGHTS
    else:
        assert words in why(tmp_path, endpoint)


def test_plain_http_instead_of_tls_is_reported(server: HubServer, tmp_path: Path) -> None:
    assert "no secure connection (TLS)" in why(tmp_path, server.endpoint.replace("http:", "https:"))

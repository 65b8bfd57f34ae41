# SPDX-License-Identifier: AGPL-3.0-only
"""Everything about a release except its images: when `latest` moves to it, its notes, Docker Hub's page and token. A
test server asks for tokens like a registry."""

import base64
import datetime
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from scripts.hub import FIXED, description, ends_soon
from scripts.registry import Registry
from scripts.release import due, notes
from scripts.upstream import ROOT, Refused, Upstream

NOW = datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)


def released(tag: str, days: float, **more: bool) -> dict[str, Any]:
    """A release published this many days ago, as in GitHub's list."""
    when = (NOW - datetime.timedelta(days=days)).isoformat().replace("+00:00", "Z")
    return {"tag_name": tag, "draft": False, "prerelease": False, "published_at": when, **more}


@pytest.mark.parametrize(
    ("releases", "expected"),
    [
        ([released("v2.5.6-r1", 8)], "v2.5.6-r1"),
        ([released("v2.5.6-r1", 6.9)], None),
        ([released("v2.5.6-r9", 9), released("v2.5.6-r10", 8), released("v2.5.7-r1", 1)], "v2.5.6-r10"),
        ([released("v2.5.6-r1", 9), released("v2.5.6-r2", 8, prerelease=True)], "v2.5.6-r1"),
        ([released("v2.5.6-r1", 9, draft=True), released("demo", 9)], None),
        ([], None),
    ],
)
def test_latest_moves_to_the_newest_release_that_is_a_week_old_and_not_held_back(
    releases: list[dict[str, Any]], expected: str | None
) -> None:
    assert due(releases, NOW) == expected


CHANGELOG = (
    "# Changelog\n\n## v2.5.7-r1 - 2027-01-20\n\n### Changed\n\n- Ours ([speed](docs/speed.md)).\n\n"
    "## v2.5.6-r1 - 2026-12-01\n\n- Older.\n"
)
READ = {"before": "v2.5.6", "changes": ["library: pillow 10.4.0 -> 12.2.0"]}
TAGS = [
    "v2.5.7-r1 -> sha256:1\n",
    "v2.5.7-r1-arm -> sha256:2\n",
    "v2.5.7-r1-cuda -> sha256:3\n",
    "v2.5.7 -> sha256:1\n",
]


def test_the_notes_list_our_changes_upstreams_changes_and_the_images() -> None:
    told = notes("v2.5.7-r1", CHANGELOG, READ, TAGS, Upstream.load())
    speed = "https://github.com/dev-fox-101/mt-photos-ml/blob/v2.5.7-r1/docs/speed.md"
    assert told.startswith(f"### Changed\n\n- Ours ([speed]({speed})).\n\n## Upstream\n")
    assert "- library: pillow 10.4.0 -> 12.2.0" in told
    assert re.findall(r"\| `(v[^`]+)` \| `(sha256:\d)` \|", told) == [
        ("v2.5.7-r1", "sha256:1"),
        ("v2.5.7-r1-arm", "sha256:2"),
        ("v2.5.7-r1-cuda", "sha256:3"),
    ]
    assert "Not in this release: openvino, armnn, rknn, rocm;" in told
    assert "Older" not in told


def test_notes_of_a_later_revision_omit_upstreams_changes_and_need_a_changelog_section() -> None:
    assert "pillow" not in notes("v2.5.7-r2", CHANGELOG.replace("v2.5.7-r1", "v2.5.7-r2"), READ, TAGS, Upstream.load())
    with pytest.raises(Refused, match=r"no section v2\.5\.7-r3"):
        notes("v2.5.7-r3", CHANGELOG, READ, TAGS, Upstream.load())


@pytest.mark.parametrize(
    ("date", "said"),
    [("2027-04-01", ""), ("2027-02-20", "in 20 days"), ("2027-01-01", "in -30 days"), ("", "is not set")],
)
def test_there_is_a_warning_before_a_token_expires(date: str, said: str) -> None:
    told = ends_soon(date, NOW.date())
    assert said in told
    assert bool(told) == bool(said)


def test_an_invalid_date_is_refused() -> None:
    with pytest.raises(Refused, match="not a date like"):
        ends_soon("next year", NOW.date())


def test_the_readme_on_docker_hub_has_absolute_links() -> None:
    told = description((ROOT / "README.md").read_text())
    links = re.findall(r"\]\(([^)]+)\)", told)
    assert all(link.startswith(("https://", "#")) for link in links)
    for page in ("README.zh-CN.md", "docs/nas.md"):
        assert f"https://github.com/dev-fox-101/mt-photos-ml/blob/main/{page}" in links
    assert "https://github.com/dev-fox-101/mt-photos-ml/raw/main/docs/page.png" in links
    with pytest.raises(Refused, match="too long"):
        description("字" * 10_000)


@pytest.mark.parametrize("tag", ["v2.5.6-r1", "v2.5.6-r12-openvino", "v2.5.6", "v2.5.6-rocm", "v2.5.6-rknn", "latest"])
def test_only_the_fixed_tags_are_protected(tag: str) -> None:
    assert (re.fullmatch(FIXED, tag) is not None) == ("-r1" in tag)


@dataclass
class Hub:
    """A stand-in for Docker Hub and its registry. asked: method, path and body of each authorized request."""

    url: str = ""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    told = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            scope = {"DELETE": "delete", "POST": "push"}.get(self.command, "pull")
            mine = base64.b64encode(b"fox:secret").decode()
            if path == "/token":
                allowed = self.headers.get("Authorization") == f"Basic {mine}"
                asked = re.findall(r"scope=\w+?%3Aa%2Fb%3A(\w+)", query)
                self.reply(200 if allowed else 401, {"token": asked[0] if asked else ""})
            elif path == "/v2/auth/token":
                right = body == {"identifier": "fox", "secret": "secret"}
                self.reply(200 if right else 401, {"access_token": "admin"})
            elif self.headers.get("Authorization") != f"Bearer {scope if path.startswith('/v2/a/b/') else 'admin'}":
                challenge = f'Bearer realm="{told.url}/token",service="hub",scope="repository:a/b:{scope}"'
                self.reply(401, {}, {"WWW-Authenticate": challenge})
            else:
                told.asked.append((self.command, self.path, body))
                more = {"Link": '</v2/a/b/tags/list?n=1000&last=x>; rel="next"'} if "last" not in self.path else {}
                location = {"Location": "/v2/a/b/blobs/uploads/12"} if self.command == "POST" else {}
                self.reply(202, {"tags": ["x"] if more else ["y"]}, {**more, **location})

        do_POST = do_DELETE = do_PATCH = do_GET

        def reply(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data := json.dumps(body).encode())))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever).start()
    yield told
    server.shutdown()
    server.server_close()


def run(hub: Hub, *words: str, token: str = "secret") -> subprocess.CompletedProcess[str]:
    given = {"DOCKERHUB_USERNAME": "fox", "DOCKERHUB_TOKEN": token, "DOCKERHUB_TOKEN_EXPIRES": "2999-01-01"}
    given |= {"HUB": hub.url, "IMAGE": f"{hub.url.removeprefix('http://')}/a/b"}
    command = [sys.executable, "-m", "scripts.hub", *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, check=False)


def test_the_login_check_starts_an_upload_and_cancels_it(hub: Hub) -> None:
    ended = run(hub, "login")
    assert (ended.returncode, ended.stderr) == (0, "")
    uploads = "/v2/a/b/blobs/uploads/"
    assert [asked[:2] for asked in hub.asked] == [("POST", uploads), ("DELETE", f"{uploads}12")]


@pytest.mark.parametrize(("token", "said"), [("wrong", "refused the login: 401"), ("", "DOCKERHUB_TOKEN is not set")])
def test_a_refused_login_is_reported_in_one_line(token: str, said: str, hub: Hub) -> None:
    ended = run(hub, "login", token=token)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert hub.asked == []


def test_all_pages_of_tags_are_read_and_each_request_gets_a_token_of_its_scope(hub: Hub) -> None:
    registry = Registry(f"{hub.url.removeprefix('http://')}/a/b", "fox", "secret")
    assert list(registry.tags()) == ["x", "y"]
    registry.delete("sha256:12")
    assert hub.asked[-1][:2] == ("DELETE", "/v2/a/b/manifests/sha256:12")


def test_docker_hubs_page_is_the_readme_and_fixed_tags_are_protected(hub: Hub) -> None:
    ended = run(hub, "page")
    assert ended.returncode == 0, ended.stderr
    page, rules = hub.asked
    assert page == (
        "PATCH",
        "/v2/repositories/a/b",
        {"full_description": description((ROOT / "README.md").read_text())},
    )
    assert rules[1:] == (
        "/v2/namespaces/a/repositories/b/immutabletags",
        {"immutable_tags": True, "immutable_tags_rules": [FIXED]},
    )

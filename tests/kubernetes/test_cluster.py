# SPDX-License-Identifier: AGPL-3.0-only
"""Runs deploy/kubernetes on a kind cluster, and sends photos while replicas are deleted, killed and replaced.

Not part of `make test`: the workflow `kubernetes` runs it every week, with the image to test in IMAGE.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.contract import build_cache
from service import KEY, free_port, until
from trust.traffic import Request, answered, mixed, running_traffic

CLUSTER = "mt-photos-ml-test"
HERE = Path(__file__).parent
NODE_PORT = 30860
FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=8).read().decode())"

pytestmark = pytest.mark.skipif(
    shutil.which("kind") is None or not os.environ.get("IMAGE"), reason="needs kind, and an image's name in IMAGE"
)


def run(*words: object, check: bool = True, given: str | None = None) -> str:
    ended = subprocess.run([*map(str, words)], input=given, capture_output=True, text=True, timeout=600, check=False)
    assert not check or ended.returncode == 0, f"{words}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def kubectl(*words: object, check: bool = True, given: str | None = None) -> str:
    return run("kubectl", "--context", f"kind-{CLUSTER}", *words, check=check, given=given)


def replicas() -> list[str]:
    """The service's pods that are ready and not being deleted."""
    pods = json.loads(kubectl("get", "pods", "--selector=app=mt-photos-ml", "--output=json"))["items"]
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return [pod["metadata"]["name"] for pod in staying if _is_ready(pod["status"])]


def _is_ready(status: dict[str, Any]) -> bool:
    return any((each["type"], each["status"]) == ("Ready", "True") for each in status.get("conditions", []))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HAProxy's address, in front of three replicas on two nodes, which have the models in a folder."""
    folder, port = tmp_path_factory.mktemp("cluster"), free_port()
    build_cache(folder / "models")
    mount = {"hostPath": str(folder / "models"), "containerPath": "/var/lib/mt-photos-ml"}
    front = {"role": "control-plane", "extraPortMappings": [{"containerPort": NODE_PORT, "hostPort": port}]}
    nodes = [front, *[{"role": "worker", "extraMounts": [mount]}] * 2]
    told = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes}
    try:
        run("kind", "create", "cluster", "--name", CLUSTER, "--wait=3m", "--config=-", given=json.dumps(told))
        run("docker", "tag", os.environ["IMAGE"], "mt-photos-ml:test")
        run("kind", "load", "docker-image", "--name", CLUSTER, "mt-photos-ml:test")
        kubectl("create", "secret", "generic", "mt-photos-ml", f"--from-literal=key={KEY}")
        kubectl("apply", "--kustomize", HERE)
        until(lambda: len(replicas()) == 3, 300)
        kubectl("rollout", "status", "deployment/mt-photos-ml-haproxy", "--timeout=3m")
        yield f"http://127.0.0.1:{port}"
    finally:
        print(kubectl("get", "pods", "--output=wide", check=False), kubectl("get", "events", check=False))
        print(kubectl("logs", "--selector=app in (mt-photos-ml, mt-photos-ml-haproxy)", "--tail=50", check=False))
        run("kind", "delete", "cluster", "--name", CLUSTER, check=False)


@pytest.fixture(scope="module")
def requests(url: str) -> list[Request]:
    return answered(url, mixed(4))


def test_every_replica_takes_photos(url: str, requests: list[Request]) -> None:
    photo, took = requests[0], set[str]()
    with httpx.Client(base_url=url, headers={"api-key": KEY, "content-type": photo.content_type}, timeout=60) as client:
        for _ in range(30):
            took.add(client.post(photo.route, content=photo.body).raise_for_status().headers["x-instance"])
    assert took == {*replicas()}


@pytest.mark.parametrize(
    "words",
    [
        ("delete", "pod", "--wait=false"),
        ("delete", "pod", "--grace-period=0", "--force"),
        ("rollout", "restart", "deployment/mt-photos-ml"),
    ],
    ids=["deleted", "killed", "all replaced"],
)
def test_no_photo_is_lost_or_answered_wrongly_while_replicas_are(
    words: tuple[str, ...], url: str, requests: list[Request]
) -> None:
    before = replicas()
    with running_traffic(url, requests, clients=8) as traffic:
        until(lambda: traffic.right >= 100)
        kubectl(*words, *([before[0]] if words[1] == "pod" else []))
        going = {*before} if words[0] == "rollout" else {before[0]}
        until(lambda: len(ready := replicas()) >= 3 and not going & {*ready}, 300)
        enough = traffic.right + 100
        until(lambda: traffic.right >= enough)
    print(
        f"{words}: sent {traffic.sent}, answered {traffic.right}, 503 {traffic.busy}, slowest {traffic.slowest:.1f} s"
    )
    traffic.check()
    assert (traffic.lost, traffic.busy, traffic.sent - traffic.right) == ([], 0, 0)


def test_only_haproxy_reaches_the_replicas(url: str) -> None:
    def ask(name: str, address: str) -> str:
        command = ["python", "-c", FETCH, address]
        kubectl("run", name, "--image=mt-photos-ml:test", "--restart=Never", "--command", "--", *command)
        state = ["get", "pod", name, "--output=jsonpath={.status.phase}"]
        until(lambda: kubectl(*state) in ("Succeeded", "Failed"))
        return kubectl("logs", name)

    assert ask("friend", "http://mt-photos-ml:8060/ping").strip() == "pong"
    assert "pong" not in ask("stranger", "http://mt-photos-ml-replicas:3003/ping")

# SPDX-License-Identifier: AGPL-3.0-only
"""deploy/kubernetes, rendered by kustomize and checked with Kubernetes' schemas, HAProxy and the service."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mt_photos_ml.settings import Settings
from scripts.contract import build_cache
from scripts.upstream import ROOT, Upstream, our_version
from service import KEY, Service, answers, free_port, running, until

HERE = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (HERE / "overlays").iterdir())
KINDS = [*OVERLAYS, "cpu with a shared cache"]
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}

Resource = dict[str, Any]

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy on this machine")
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")


@cache
def rendered(kind: str) -> str:
    """The manifests that `kubectl apply -k` sends. kind: one of KINDS."""
    if kind in OVERLAYS:
        return kubectl_kustomize(HERE / "overlays" / kind)
    folder = ROOT / "build" / "kubernetes"
    folder.mkdir(parents=True, exist_ok=True)
    ours = os.path.relpath(HERE, folder)
    own = {"resources": [f"{ours}/overlays/cpu"], "components": [f"{ours}/components/shared-cache"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    return kubectl_kustomize(folder)


def kubectl_kustomize(folder: Path) -> str:
    ended = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def resources(kind: str, of: str) -> dict[str, Resource]:
    """The resources of a kind (`of`), by name."""
    found = [resource for resource in yaml.safe_load_all(rendered(kind)) if resource["kind"] == of]
    return {resource["metadata"]["name"]: resource for resource in found}


def pod(kind: str, of: str = "mt-photos-ml") -> Resource:
    spec: Resource = resources(kind, "Deployment")[of]["spec"]["template"]["spec"]
    return spec


def container(kind: str, of: str = "mt-photos-ml") -> Resource:
    (only,) = pod(kind, of)["containers"]
    found: Resource = only
    return found


def environment(kind: str, of: str) -> dict[str, str]:
    """The container's environment, with the values that Kubernetes fills in."""
    given: dict[str, str] = {"NAMESPACE": "photos"}
    for source in container(kind, of)["envFrom"]:
        given |= resources(kind, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    for variable in container(kind, of)["env"]:
        value = variable.get("value") or {"NAMESPACE": "photos", "API_AUTH_KEY": KEY}.get(variable["name"], "pod-1")
        given[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], value)
    return given


def validated(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "rendered.yaml").write_text(text)
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", str(folder / "rendered.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_knows_every_field(kind: str, tmp_path: Path) -> None:
    ended = validated(rendered(kind), tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_misspelt_probe_is_refused(tmp_path: Path) -> None:
    ended = validated(rendered("cpu").replace("readinessProbe", "readynessProbe"), tmp_path)
    assert (ended.returncode, "readynessProbe" in ended.stdout) == (1, True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_runs_the_image_of_its_variant(overlay: str) -> None:
    (base,) = (base for base in Upstream.load().bases if base.suffix in (f"-{overlay}", "") and base.variant == overlay)
    image = f"devfox101/mt-photos-ml:{our_version()[1]}{base.suffix}"
    assert {each["image"] for each in [container(overlay), *pod(overlay)["initContainers"]]} == {image}


def test_haproxy_has_the_same_image_as_in_compose() -> None:
    compose = yaml.safe_load((ROOT / "deploy/haproxy/compose.yaml").read_text())
    assert container("cpu", "mt-photos-ml-haproxy")["image"] in [each["image"] for each in compose["services"].values()]


def configuration(kind: str) -> str:
    """The pod's haproxy.cfg."""
    (volume,) = pod(kind, "mt-photos-ml-haproxy")["volumes"]
    told: str = resources(kind, "ConfigMap")[volume["configMap"]["name"]]["data"]["haproxy.cfg"]
    return told


@needs_haproxy
def test_haproxy_accepts_its_configuration_and_reads_every_variable(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text(told := configuration("cpu"))
    given = environment("cpu", "mt-photos-ml-haproxy")
    command = ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")]
    ended = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    own = {variable["name"] for variable in container("cpu", "mt-photos-ml-haproxy")["env"]} - {"NAMESPACE"}
    assert own | {"REPLICA_PHOTOS", "CLIP_VISUAL_MODEL_NAME"} <= set(re.findall(r"\w+", told))
    bound = {port["containerPort"] for port in container("cpu", "mt-photos-ml-haproxy")["ports"]}
    assert {int(given["PORT"]), int(given["STATISTICS_PORT"])} == bound


def test_haproxy_finds_every_replica_and_sends_it_one_photo_more_than_it_processes() -> None:
    given = environment("cpu", "mt-photos-ml-haproxy")
    headless = resources("cpu", "Service")["mt-photos-ml-replicas"]["spec"]
    assert headless["clusterIP"] == "None"
    assert given["REPLICAS_DNS"] == "mt-photos-ml-replicas.photos.svc.cluster.local"
    assert re.search(rf'REPLICAS_DNS[^ ]*:{headless["ports"][0]["port"]}"', configuration("cpu"))
    (scaler,) = resources("cpu", "HorizontalPodAutoscaler").values()
    assert scaler["spec"]["maxReplicas"] < int(given["REPLICAS_MOST"])
    threads = int(environment("cpu", "mt-photos-ml")["MACHINE_LEARNING_REQUEST_THREADS"])
    assert (threads, threads) == (int(given["REPLICA_PHOTOS"]) - 1, int(container("cpu")["resources"]["limits"]["cpu"]))


def test_only_cpu_replicas_autoscale_and_each_card_has_one_replica() -> None:
    assert [len(resources(overlay, "HorizontalPodAutoscaler")) for overlay in ("cpu", "cuda")] == [1, 0]
    cpu, cuda = (resources(overlay, "Deployment")["mt-photos-ml"]["spec"] for overlay in ("cpu", "cuda"))
    assert "replicas" not in cpu  # else each `apply` would reset the autoscaler's number
    assert container("cuda")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cuda["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_between_resources_resolves(kind: str) -> None:
    deployments = resources(kind, "Deployment")
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in deployments.items()}
    ports = {name: {port["name"] for port in container(kind, name)["ports"]} for name in deployments}
    front, replicas = (resources(kind, "Service")[name]["spec"] for name in ("mt-photos-ml", "mt-photos-ml-replicas"))
    assert (front["selector"], replicas["selector"]) == (labels["mt-photos-ml-haproxy"], labels["mt-photos-ml"])
    assert front["ports"][0]["targetPort"] in ports["mt-photos-ml-haproxy"]
    assert replicas["ports"][0]["targetPort"] in ports["mt-photos-ml"]
    (budget,) = resources(kind, "PodDisruptionBudget").values()
    assert budget["spec"]["selector"]["matchLabels"] == labels["mt-photos-ml"]
    for scaler in resources(kind, "HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
    for name in deployments:
        for volume in pod(kind, name)["volumes"]:
            claim = volume.get("persistentVolumeClaim")
            assert claim is None or claim["claimName"] in resources(kind, "PersistentVolumeClaim")


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_comes_only_from_the_users_secret(kind: str) -> None:
    assert resources(kind, "Secret") == {}
    (volume,) = (volume["secret"] for volume in pod(kind)["volumes"] if "secret" in volume)
    (variable,) = (each for each in container(kind, "mt-photos-ml-haproxy")["env"] if each["name"] == "API_AUTH_KEY")
    named = variable["valueFrom"]["secretKeyRef"]
    assert (volume["secretName"], [item["key"] for item in volume["items"]]) == (named["name"], [named["key"]])


@pytest.mark.parametrize("kind", KINDS)
def test_only_haproxy_reaches_a_replica(kind: str) -> None:
    policy = resources(kind, "NetworkPolicy")["mt-photos-ml"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app": "mt-photos-ml"}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    haproxy = {"podSelector": {"matchLabels": {"app": "mt-photos-ml-haproxy"}}}
    assert policy["ingress"] == [{"from": [haproxy], "ports": [{"port": "http", "protocol": "TCP"}]}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("deployment", ["mt-photos-ml", "mt-photos-ml-haproxy"])
def test_a_pod_has_the_fewest_rights(kind: str, deployment: str) -> None:
    """Meets the Pod Security Standard `restricted`, except that root changes the owner of a cache on the node."""
    spec = pod(kind, deployment)
    assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in [*spec["containers"], *spec.get("initContainers", [])]:
        rights = {**each["securityContext"]}
        if each["name"] == "own-cache":
            assert (rights.pop("runAsUser"), rights.pop("runAsNonRoot")) == (0, False)
            assert rights["capabilities"].pop("add") == ["CHOWN"]
        least = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert rights == least
    of_the_node = [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert len(of_the_node) == (deployment == "mt-photos-ml" and kind in OVERLAYS)
    assert ("initContainers" in spec and bool(spec["initContainers"])) == bool(of_the_node)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_has_time_to_finish(kind: str) -> None:
    configuration = (ROOT / "overlay/mt_photos_ml/server/gunicorn_conf.py").read_text()
    (graceful,) = re.findall(r"^graceful_timeout = (\d+)", configuration, re.M)
    before = container(kind)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(kind)["terminationGracePeriodSeconds"] > before + int(graceful)  # DRAIN is part of it
    limit = pod(kind, "mt-photos-ml-haproxy")["terminationGracePeriodSeconds"]
    (hard,) = re.findall(r"hard-stop-after (\d+)s", rendered(kind))
    assert limit > container(kind, "mt-photos-ml-haproxy")["lifecycle"]["preStop"]["sleep"]["seconds"] + int(hard)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with a replica's settings, tiny models and the key in a file."""
    folder = tmp_path_factory.mktemp("replica")
    build_cache(folder / "cache")
    (folder / "key").write_text(KEY)
    here = {"API_AUTH_KEY_FILE": str(folder / "key"), "MACHINE_LEARNING_CACHE_FOLDER": str(folder / "cache")}
    with running(folder, environment("cpu", "mt-photos-ml") | here | {"DRAIN": "0"}, key=None) as service:
        yield service
    assert "is not a setting" not in service.log.read_text()


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_service_answers_each_probe(probe: str, replica: Service) -> None:
    assert httpx.get(replica.url + container("cpu")[probe]["httpGet"]["path"]).status_code == 200


@needs_haproxy
def test_a_forged_client_address_does_not_evade_the_limit_on_wrong_keys(replica: Service, tmp_path: Path) -> None:
    port, statistics = free_port(), free_port()
    given = environment("cpu", "mt-photos-ml-haproxy") | {"PORT": str(port), "STATISTICS_PORT": str(statistics)}
    given["MACHINE_1"] = replica.url.removeprefix("http://")  # DNS finds no replicas here
    (tmp_path / "haproxy.cfg").write_text(configuration("cpu"))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")], env=os.environ | given)
    try:
        until(lambda: answers(f"http://127.0.0.1:{statistics}/ready"))
        guesses = [{"api-key": f"guess {n}", "x-forwarded-for": f"203.0.113.{n}"} for n in range(20)]
        told = [httpx.post(f"http://127.0.0.1:{port}/check", headers=guess).status_code for guess in guesses]
    finally:
        process.terminate()
        process.wait(30)
    assert (told[0], told[-1]) == (401, 429)


def test_a_replica_gets_only_known_settings() -> None:
    known = SETTINGS | {"API_AUTH_KEY_FILE", "FORWARDED_ALLOW_IPS", "REPLICA_PHOTOS"}
    for overlay, besides in (("cpu", set()), ("cuda", {"CUDA_CACHE_PATH"})):
        assert environment(overlay, "mt-photos-ml").keys() - {"NAMESPACE"} <= known | besides

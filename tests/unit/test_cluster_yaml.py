"""The cluster manifests: valid in Ray's and KubeRay's own words, and true to what the product relies on."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec
from ray.autoscaler._private.util import with_head_node_ip

REPO = Path(__file__).parents[2]
MANIFESTS = REPO / "platform" / "losslens" / "cluster" / "manifests"
HEALTH = {f"RAY_health_check_{name}" for name in ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")}
Yaml = dict[str, Any]


def load(path: Path) -> Yaml:
    loaded: Yaml = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(params=["aws", "gcp"])
def cluster(request: pytest.FixtureRequest) -> Yaml:
    """What `ray up` reads, for one cloud."""
    return load(REPO / "cluster.yaml" if request.param == "aws" else MANIFESTS / "gcp.yaml")


@pytest.fixture
def job() -> Yaml:
    """What KubeRay reads."""
    return load(MANIFESTS / "rayjob.yaml")


def head_and_workers(kinds: Yaml, head_kind: str) -> tuple[Yaml, list[Yaml]]:
    return kinds[head_kind], [kind for name, kind in kinds.items() if name != head_kind]


def check_slots(head: Yaml, workers: list[Yaml]) -> None:
    """The head carries the driver and no slot; each kind of worker has one kind of slot, as many as GPUs."""
    assert head["resources"]["driver"] == 1
    assert not {"train_slot", "eval_slot", "GPU"} & set(head["resources"])
    assert head["max_workers"] == 0
    offered = []
    for kind in workers:
        (slot,) = {"train_slot", "eval_slot"} & set(kind["resources"])
        assert kind["resources"][slot] == kind["resources"]["GPU"]
        assert "driver" not in kind["resources"]
        assert kind["min_workers"] == 0 < kind["max_workers"]
        offered.append(slot)
    assert sorted(offered) == ["eval_slot", "train_slot"]


# What `ray up` reads


def test_rays_schema_accepts_it(cluster: Yaml) -> None:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):  # the schema does refuse
        jsonschema.validate(cluster | {"head_nodes": 1}, schema)


def test_slots(cluster: Yaml) -> None:
    head, workers = head_and_workers(cluster["available_node_types"], cluster["head_node_type"])
    check_slots(head, workers)
    assert cluster["max_workers"] >= sum(kind["max_workers"] for kind in workers)


def is_spot(node_config: Yaml) -> bool:
    """As AWS or as Google Cloud says it."""
    aws = node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return bool(aws or node_config.get("scheduling", {}).get("provisioningModel") == "SPOT")


def test_the_head_is_on_demand_and_workers_are_spot(cluster: Yaml) -> None:
    head, workers = head_and_workers(cluster["available_node_types"], cluster["head_node_type"])
    assert not {"InstanceMarketOptions", "scheduling"} & set(head["node_config"])
    assert all(is_spot(kind["node_config"]) for kind in workers)


def test_both_clouds_offer_the_same() -> None:
    aws, gcp = load(REPO / "cluster.yaml"), load(MANIFESTS / "gcp.yaml")
    own = {"provider", "available_node_types", "head_setup_commands", "worker_start_ray_commands"}
    assert {key: aws[key] for key in aws.keys() - own} == {key: gcp[key] for key in gcp.keys() - own}
    for name, kind in aws["available_node_types"].items():
        other = gcp["available_node_types"][name]
        for resources in (kind["resources"], other["resources"]):
            del resources["CPU"]  # machines differ in these
        assert {key: kind[key] for key in kind.keys() - {"node_config"}} == {key: other[key] for key in other.keys() - {"node_config"}}


def test_start_commands(cluster: Yaml) -> None:
    head = " ".join(cluster["head_start_ray_commands"])
    assert all(f"{setting}=" in head for setting in HEALTH)
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "$RAY_HEAD_IP" in cluster["worker_start_ray_commands"][1]
    commands = [command for key in cluster if key.endswith("_commands") for command in cluster[key]]
    assert all(shlex.split(command) for command in commands)


def test_set_up_is_our_own(cluster: Yaml) -> None:
    assert cluster["file_mounts"]["~/losslens"] == "."
    assert cluster["setup_commands"][-1].endswith("make setup")
    assert (REPO / "Makefile").is_file()
    (client,) = cluster["head_setup_commands"]  # Ray's default would serve another Python than ours
    assert client.startswith("~/losslens/.venv/bin/pip install ")
    assert {"aws": "boto3", "gcp": "google-api-python-client"}[cluster["provider"]["type"]] in client


STAND_IN = """#!/bin/sh
echo "$(basename $0) $* | $RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH" >> ~/calls
[ "$(grep -c losslens ~/calls)" != 1 ]  # the watcher fails the first time
"""


@pytest.fixture
def node(tmp_path: Path) -> Callable[[list[str]], list[str]]:
    """Runs commands as Ray does on a node, where `ray`, `losslens` and `sleep` only write down how they were called."""
    programs = tmp_path / "losslens" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("ray", "losslens", "sleep"):
        (programs / name).write_text(STAND_IN, encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def run(commands: list[str]) -> list[str]:
        for command in with_head_node_ip(commands, "10.0.0.1"):  # type: ignore[no-untyped-call]
            shell = " ".join(_with_interactive(command))  # type: ignore[no-untyped-call]
            subprocess.run(["bash", "-c", shell], env=environment, stdin=subprocess.DEVNULL, start_new_session=True, timeout=60, check=True)
        return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()

    return run


def test_workers_run_a_watcher_that_is_started_again(cluster: Yaml, node: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    started = node(cluster["initialization_commands"] + cluster["worker_start_ray_commands"])
    token = f"token {tmp_path}/.ray/auth_token"
    assert started[:2] == [f"ray stop | {token}", f"ray start --address=10.0.0.1:6379 | {token}"]
    watcher = f"losslens drain-watcher --source {cluster['provider']['type']} | {token}"
    expected = [watcher, f"sleep 5 | {token}", watcher]
    for _ in range(600):  # it runs in the background
        calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()[2:]
        if len(calls) >= len(expected):
            break
        time.sleep(0.05)
    assert calls == expected


def test_the_head_asks_for_the_token_and_runs_no_watcher(cluster: Yaml, node: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    calls = node(cluster["initialization_commands"] + cluster["head_start_ray_commands"])
    assert [call.split()[:2] for call in calls] == [["ray", "stop"], ["ray", "start"]]
    assert all(call.endswith(f"| token {tmp_path}/.ray/auth_token") for call in calls)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


# What KubeRay reads


@pytest.fixture
def fields() -> Yaml:
    """KubeRay's fields: no others are allowed."""
    loaded: Yaml = json.loads((REPO / "tests" / "golden" / "rayjob-fields.json").read_text(encoding="utf-8"))
    return loaded


def test_kuberays_fields_accept_it(job: Yaml, fields: Yaml) -> None:
    jsonschema.Draft202012Validator.check_schema(fields)
    jsonschema.validate(job, fields)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("spec",), "backOffLimit", 3),
        (("spec",), "backoffLimit", "3"),
        (("spec", "rayClusterSpec"), "enableIntreeAutoscaling", True),
        (("spec", "rayClusterSpec", "authOptions"), "mode", "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec"), "minReplicas", 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1), "resources", {"eval_slot": 1}),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec"), "nodeSelectors", {}),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "lifecycle"), "prestop", {}),
    ],
)
def test_kuberays_fields_refuse_what_is_misspelt(path: tuple[str | int, ...], key: str, value: object, job: Yaml, fields: Yaml) -> None:
    changed = copy.deepcopy(job)
    place: Any = changed
    for step in path:
        place = place[step]
    place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, fields)


def test_slots_on_kubernetes(job: Yaml) -> None:
    """As Ray's autoscaler reads them."""
    kinds = _generate_available_node_types_from_ray_cr_spec(job["spec"]["rayClusterSpec"])
    assert set(kinds) == {"headgroup", "train", "score"}
    check_slots(*head_and_workers(kinds, "headgroup"))


def test_the_job_goes_on_by_itself(job: Yaml) -> None:
    spec = job["spec"]
    assert (spec["submissionMode"], spec["suspend"], spec["shutdownAfterJobFinishes"]) == ("K8sJobMode", False, True)
    assert spec["backoffLimit"] > 0
    assert (REPO / shlex.split(spec["entrypoint"])[1]).is_file()
    assert json.loads(spec["entrypointResources"]) == {"driver": 1}
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == version("ray")


def pods(job: Yaml) -> tuple[Yaml, list[Yaml]]:
    """The head's pod and the workers'."""
    cluster = job["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"]["template"]["spec"], [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]


def test_spot_pods_drain_and_the_head_is_on_demand(job: Yaml) -> None:
    head, workers = pods(job)
    spot = "cloud.google.com/gke-spot"
    (term,) = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": spot, "operator": "DoesNotExist"}]
    assert "lifecycle" not in head["containers"][0]
    for pod in workers:
        assert pod["nodeSelector"] == {spot: "true"}
        assert spot in {toleration["key"] for toleration in pod["tolerations"]}
        *_, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert "losslens drain-watcher --source file:" in script
        assert script.endswith(f"sleep {pod['terminationGracePeriodSeconds']}")


def test_pods_share_the_results_and_the_image(job: Yaml) -> None:
    head, workers = pods(job)
    for pod in workers:
        assert pod["volumes"] == head["volumes"]
        assert pod["containers"][0]["volumeMounts"] == head["containers"][0]["volumeMounts"]
        assert pod["containers"][0]["image"] == head["containers"][0]["image"]
    assert {variable["name"] for variable in head["containers"][0]["env"]} >= HEALTH
    (mount,) = head["containers"][0]["volumeMounts"]
    assert f"--results {mount['mountPath']}/" in job["spec"]["entrypoint"]

"""The manifest of `--backend kubernetes`, and the ranks of its pods."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.cluster.kubernetes import manifest, pod
from launch.local.ended import Ended

CLUSTER = """
backend: kubernetes
nodes: 2
nproc: 2
gpus_per_node: "2"
cpus_per_task: 3
memory: 8Gi
env: {NCCL_DEBUG: WARN}
container: {image: "registry/image:1"}
kubernetes: {claim: work, namespace: training}
"""


@pytest.fixture
def written(config, germinal, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("k8s.yaml").write_text(CLUSTER)
    code, out, err = germinal("submit", config, "--cluster=k8s.yaml", "--dry-run", "supervise.restarts=4")
    assert code == 0, err
    assert not Path("runs").exists()
    return out


def test_one_pod_a_node_and_what_follows_its_end(written) -> None:
    config_map, service, job = yaml.safe_load_all(written)
    spec = job["spec"]
    assert {one["metadata"]["namespace"] for one in (config_map, service, job)} == {"training"}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["backoffLimit"] == 8
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {"values": []})["values"]
    }
    assert actions == {2: "FailJob", 130: "FailJob", 75: "Ignore"}
    template = spec["template"]["spec"]
    # What podFailurePolicy demands, and what the names of the first pod follow from.
    assert template["restartPolicy"] == "Never" and template["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    (ranks,) = template["containers"]
    assert ranks["name"] == spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    assert ranks["command"][-5:] == ["/etc/germinal/config.yaml", "2", "2", "tiny-0.tiny", "29500"]
    assert ranks["resources"]["requests"] == {"nvidia.com/gpu": "2", "memory": "8Gi", "cpu": "6"}
    assert {mount["name"] for mount in ranks["volumeMounts"]} == {v["name"] for v in template["volumes"]}


def test_all_that_is_missing_is_one_line(config, germinal, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = germinal.refusal("submit", config, "--backend=kubernetes")
    assert code == 2
    assert [name for name in ("--dry-run", "container.image", "kubernetes.claim") if name not in line] == []
    code, line = germinal.refusal("submit", config, "--backend=kubernetes", "--dry-run", "--container=i")
    assert code == 2 and "missing: kubernetes.claim in a cluster file" in line


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_knows_every_field_of_the_job(written, tmp_path) -> None:
    """kubectl reads the job into its own types, without a server: a field that it does not know is lost."""
    job = list(yaml.safe_load_all(written))[2]

    def through_kubectl(job: dict) -> dict:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job))
        words = ["kubectl", "set", "env", "--local", "-f", str(file), "-o", "yaml", "ADDED=1"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        spec = yaml.safe_load(done.stdout)["spec"]
        variables = spec["template"]["spec"]["containers"][0]["env"]
        assert variables.pop() == {"name": "ADDED", "value": "1"}
        return spec

    def without_empty(value):
        if isinstance(value, dict):
            return {key: without_empty(one) for key, one in value.items() if one not in (None, {})}
        return [without_empty(one) for one in value] if isinstance(value, list) else value

    assert without_empty(through_kubectl(job)) == job["spec"]
    job["spec"]["podFailurePolicies"] = {"rules": []}
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        assert through_kubectl(job) == job["spec"]


def test_the_rank_follows_from_the_pods_index() -> None:
    commands = pod.rank_commands("c.yaml", 2, 3, "host", "29500", {"JOB_COMPLETION_INDEX": "1"})
    assert [command.env["RANK"] for command in commands] == ["3", "4", "5"]
    assert [command.env["LOCAL_RANK"] for command in commands] == ["0", "1", "2"]
    assert {command.env["WORLD_SIZE"] for command in commands} == {"6"}
    assert {command.env["MASTER_ADDR"] for command in commands} == {"host"}
    for index in ("", "2", "-1", "x"):
        with pytest.raises(ValueError, match="JOB_COMPLETION_INDEX"):
            pod.rank_commands("c.yaml", 2, 3, "host", "29500", {"JOB_COMPLETION_INDEX": index})


@pytest.mark.parametrize("run", ["tiny", "Tiny", "a.b", "a_b", "1", "x" * 200, "a-b", "-", "run.", "A"])
def test_every_run_has_a_name_that_kubernetes_allows(run) -> None:
    name = manifest.object_name(run)
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) and len(name) + len("-12345-abcde") <= 63
    others = {manifest.object_name(other) for other in ("tiny", "Tiny", "a.b", "a_b", "a-b") if other != run}
    assert name not in others


@pytest.mark.parametrize(
    ("code", "saves", "expected"),
    [
        (1, True, 75),
        (1, False, 1),
        (137, True, 75),
        (0, True, 0),
        (2, True, 2),
        (75, False, 75),
        (130, True, 130),
    ],
)
def test_a_failure_after_a_new_checkpoint_is_not_counted(
    code: int, saves: bool, expected: int, tmp_path, monkeypatch
) -> None:
    """A Job counts failures for its whole life; the ranks of every pod end with the first that fails."""
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "step-000000010").mkdir(parents=True)
    file = tmp_path / "c.yaml"
    file.write_text(
        f"model: {{heads: 4, hidden: 64}}\ndata: {{sources: [{{path: x}}]}}\nrun_dir: {tmp_path}/run"
    )

    def supervise(*_: object, **__: object) -> Ended:
        if saves:
            (checkpoints / "step-000000020").mkdir()
        return Ended(code)

    monkeypatch.setattr("launch.local.supervisor.supervise", supervise)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert pod.main([str(file), "2", "1", "host", "29500"]) == expected

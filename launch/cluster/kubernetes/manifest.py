"""A run → the objects of Kubernetes that train it, as YAML for `kubectl apply -f -`.

A ConfigMap holds the resolved config. An indexed Job has one pod a node; each starts its ranks (`pod`), which
meet at the first pod by the name that the headless Service gives it. The image has germinal installed;
corpora and runs are on the claim, which is mounted as the working directory.

What follows a pod's end goes by exit code: 75 (stopped and saved, or failed after a new checkpoint, or the
run is held for the moment) and a pod that the cluster itself evicts are started again and not counted; 2 (the
config is wrong) and 130 end the Job; any other failure is started again and counted: in the Job's whole life
supervise.restarts times the number of pods, for the ranks of all of them end with the first. Fields:
Kubernetes API reference, Job v1 (1.31 and later: podFailurePolicy is stable).
"""

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.exit_codes import INTERRUPTED, STOPPED, WRONG
from launch.cluster.cluster import Cluster

if TYPE_CHECKING:
    from launch.cluster.sending import Wish

CONTAINER = "ranks"
CONFIG_FOLDER = "/etc/germinal"
PORT = 29500  # of the first pod's own network: nobody else is there
MOST_CONFIG_BYTES = 900_000  # an object has at most 1 MiB
_LABEL = 45  # letters of an object's name: the pods' have an index and five letters besides


def text(wishes: "Sequence[Wish]") -> str:
    """Return the manifest of the runs. ValueError, one line, where an object cannot hold one."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Without anchors, and with a text of several lines as a block."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, represent)
    documents = [document for wish in wishes for document in objects(wish)]
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


def objects(wish: "Wish") -> list[dict[str, Any]]:
    """Return the objects of one run."""
    from trainer.config import reading

    config, name = reading.dump(wish.config), object_name(wish.config.name)
    if len(config.encode()) > MOST_CONFIG_BYTES:
        raise ValueError(
            f"{wish.source}: more than {MOST_CONFIG_BYTES:,} bytes, which a ConfigMap cannot hold"
        )
    labels = {"app.kubernetes.io/name": "germinal", "app.kubernetes.io/instance": name}
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if wish.cluster.kubernetes.namespace:
        metadata["namespace"] = wish.cluster.kubernetes.namespace
    service = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,  # ranks look for the first pod before any is ready
        "selector": labels,
        "ports": [{"name": "ranks", "port": PORT}],
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": config}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": _job(wish, name, labels)},
    ]


def object_name(run: str) -> str:
    """Return a name that Kubernetes allows (RFC 1123: small letters, digits, dashes) for the run's; where
    letters are lost, with a hash of the run's name.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if plain == run and len(plain) <= _LABEL and plain[0].isalpha():
        return plain
    return f"run-{plain[: _LABEL - 13]}".rstrip("-") + f"-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def literal(value: str) -> str:
    """Return the text for a command, an argument or a variable of a container, in which Kubernetes replaces
    $(NAME) and reads $$ as $.
    """
    return value.replace("$", "$$")


def _job(wish: "Wish", name: str, labels: dict[str, str]) -> dict[str, Any]:
    nodes = wish.cluster.nodes
    again = {"action": "Ignore", "onExitCodes": _exit_codes(STOPPED)}
    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    wrong = {"action": "FailJob", "onExitCodes": _exit_codes(WRONG, INTERRUPTED)}
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": wish.config.supervise.restarts * nodes,  # when one pod fails, the others do
        "podFailurePolicy": {"rules": [wrong, again, evicted]},
        "template": {"metadata": {"labels": labels}, "spec": _pod(wish, name)},
    }


def _exit_codes(*codes: int) -> dict[str, Any]:
    return {"containerName": CONTAINER, "operator": "In", "values": list(codes)}


def _pod(wish: "Wish", name: str) -> dict[str, Any]:
    cluster = wish.cluster
    special = cluster.kubernetes
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": name}},
        {"name": "work", "persistentVolumeClaim": {"claimName": special.claim}},
    ]
    mounts = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "work", "mountPath": special.mount},
    ]
    if special.shared_memory:
        size = {"medium": "Memory", "sizeLimit": special.shared_memory}
        volumes.append({"name": "shared-memory", "emptyDir": size})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    arguments = [
        f"{CONFIG_FOLDER}/config.yaml",
        str(cluster.nodes),
        str(cluster.nproc),
        f"{name}-0.{name}",
        str(PORT),
    ]
    container = {
        "name": CONTAINER,
        "image": cluster.container.image,
        "command": [
            literal(cluster.container.python),
            "-P",
            "-m",
            "launch.cluster.kubernetes.pod",
            *arguments,
        ],
        "workingDir": special.mount,
        "env": [{"name": key, "value": literal(value)} for key, value in cluster.env.items()],
        "resources": _resources(cluster),
        "volumeMounts": mounts,
    }
    return {
        "restartPolicy": "Never",  # podFailurePolicy needs it: the Job makes a new pod
        "subdomain": name,
        "terminationGracePeriodSeconds": cluster.signal_seconds,
        "containers": [container],
        "volumes": volumes,
    }


def _resources(cluster: Cluster) -> dict[str, Any]:
    limits: dict[str, str] = {}
    if cluster.gpus_per_node:
        limits[cluster.kubernetes.gpu] = cluster.gpus_per_node
    if cluster.memory and cluster.memory != "0":
        limits["memory"] = cluster.memory
    requests = dict(limits)
    if cluster.cpus_per_task:
        requests["cpu"] = str(cluster.cpus_per_task * cluster.nproc)
    return {"limits": limits, "requests": requests}

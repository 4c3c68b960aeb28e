"""What a run asks of a cluster: a file such as configs/cluster/slurm.yaml, and `germinal submit`'s options.

A field states its key's meaning and limits in plain text, as the keys of a run's config do (see
`trainer.config.keys`). What several keys must agree on is checked in `preflight`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

Backend = Literal["slurm", "local", "kubernetes"]
Runtime = Literal["apptainer", "singularity", "pyxis"]
Code = Literal["copy", "installed"]

BACKENDS = get_args(Backend)
FOLDER = Path("configs/cluster")


@dataclass
class Container:
    """The image in which the ranks run; the batch step itself runs outside of it."""

    image: Annotated[str, "path or URL of the image; empty: no container"] = ""
    runtime: Annotated[
        Runtime, "what starts it: `apptainer exec`, `singularity exec`, or srun's --container-image (pyxis)"
    ] = "apptainer"
    mounts: Annotated[
        list[str],
        "HOST or HOST:CONTAINER, besides the working directory, the run folder and the copy of the code",
    ] = field(default_factory=list)
    python: Annotated[str, "interpreter inside the image", "not empty"] = "python3"


@dataclass
class Kubernetes:
    """What only a Kubernetes manifest needs. Its image is `container.image`."""

    namespace: Annotated[str, "of every object; empty: the one of the context in which it is applied"] = ""
    claim: Annotated[str, "PersistentVolumeClaim (ReadWriteMany) with the corpora and the runs"] = ""
    mount: Annotated[str, "where the claim is mounted: the working directory of every rank", "not empty"] = (
        "/work"
    )
    gpu: Annotated[str, "the resource that gpus_per_node counts", "not empty"] = "nvidia.com/gpu"
    shared_memory: Annotated[str, "size of /dev/shm, such as 8Gi; empty: the runtime's own"] = "8Gi"


@dataclass
class Cluster:
    """What one job asks for, and how its ranks are started. Read-only by convention once checked."""

    backend: Annotated[Backend, "slurm: sbatch; local: this machine, detached; kubernetes: a manifest"] = (
        "slurm"
    )
    nodes: Annotated[int, "machines that train at the same time", "≥ 1"] = 1
    nproc: Annotated[int, "ranks a node", "≥ 1"] = 1
    spare_nodes: Annotated[
        int,
        "machines held beside `nodes`: one takes the place of a node that fails, inside the allocation",
        "≥ 0",
    ] = 0
    time: Annotated[
        str,
        "limit of one job: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS or DAYS-HOURS:MINUTES:SECONDS; empty: "
        "the partition's",
    ] = ""
    partition: Annotated[str, "one, or several with commas between them; empty: the default"] = ""
    account: Annotated[str, "who is charged"] = ""
    qos: Annotated[str, "quality of service"] = ""
    constraint: Annotated[str, "features that a node must have, such as a100&ib"] = ""
    gpus_per_node: Annotated[str, "N or TYPE:N; empty: none is asked for"] = ""
    cpus_per_task: Annotated[int, "CPUs a rank; 0: what the cluster gives", "≥ 0"] = 0
    memory: Annotated[str, "of a node, such as 64G; 0: all of it; empty: what the cluster gives"] = ""
    sbatch: Annotated[
        dict[str, str], "further options of sbatch by their long names; an empty value: the option alone"
    ] = field(default_factory=dict)
    signal_seconds: Annotated[
        int, "before the time limit the run is told to save", "≥ 1", "≤ 65535", "in seconds"
    ] = 180
    requeue: Annotated[
        bool, "a job that was preempted, or reached its time limit, goes back to the queue"
    ] = True
    modules: Annotated[list[str], "loaded with `module load` before anything else"] = field(
        default_factory=list
    )
    env: Annotated[dict[str, str], "environment variables of the ranks"] = field(default_factory=dict)
    python: Annotated[str, "interpreter on the nodes; empty: the one that runs `germinal submit`"] = ""
    code: Annotated[
        Code,
        "copy: the job runs the code as it was when it was submitted, also after a requeue; installed: the "
        "code that is installed when a job starts",
    ] = "copy"
    container: Container = field(default_factory=Container)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.nodes * self.nproc


def read(file: Path | None, given: Mapping[str, Any]) -> Cluster:
    """Return what the cluster file says, with the options `given` over it: {key: value}, None for not given.

    A mapping among the options (`sbatch`, `env`) is added to the file's, key by key.

    Raises:
        ValueError: one line with the file, the key, its value and the nearest right key.
    """
    from trainer.config import keys, schema, yaml_files

    values: dict[str, Any] = yaml_files.read(file) if file else {}
    _merge(values, given)
    try:
        cluster: Cluster = schema.build(Cluster, values, elsewhere=schema.dotted_keys(Cluster))
        keys.check(cluster)
    except ValueError as error:
        raise ValueError(f"{file}: {error}" if file else str(error)) from None
    return cluster


def find(name: str, backend: str) -> Path | None:
    """Return the cluster file that `--cluster NAME` means: a path, or a name in configs/cluster/.

    Without a name: configs/cluster/BACKEND.yaml of the working directory, if it is there.
    """
    if not name:
        default = FOLDER / f"{backend or 'slurm'}.yaml"
        return default if default.is_file() else None
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    return FOLDER / f"{name}.yaml"


def _merge(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        elif value is not None:
            values[key] = dict(value) if isinstance(value, Mapping) else value

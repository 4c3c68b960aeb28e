"""What SLURM's variables say of a step: its nodes, which rank is where, and ports for its ranks to meet.
Imports no torch.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping

from common.programs import run

SCONTROL_SECONDS = 15.0
# Ports below those that the system hands out (from 32768 on).
_PORTS = range(10000, 30000)
_CANDIDATES = 12
_RANGE = r"\d+(?:-\d+)?"
_HOST = rf"(?:[^\s,\[\]]|\[{_RANGE}(?:,{_RANGE})*\])+"  # `gpu[07,12-13].cluster`
# Ids from here on are no step of srun's but SLURM's own: a batch script, salloc's shell (slurm.h).
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# What a login shell, a batch script or a job in which `germinal submit` runs must not hand on: SBATCH_* and
# SQUEUE_* change what is asked for or shown, SRUN_* how a step is started; SLURM_* describe another job.
_FOREIGN = re.compile(r"(SBATCH|SQUEUE|SCANCEL|SINFO|SLURM|SLURMD|SRUN|PMI|PMIX)_.*")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")


def is_task_of_srun(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process as a task of a step; a batch script and salloc's shell are none."""
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP and "SLURM_PROCID" in environ


def step_key(environ: Mapping[str, str]) -> str:
    """What tells a step from every other: JOB.STEP.RESTARTS, where RESTARTS counts how often it was
    requeued.
    """
    job, step, attempt = (
        environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    return f"{job}.{step}.{attempt}"


def ports(key: str) -> tuple[int, ...]:
    """Ports at which the ranks of a step try to meet, in this order: every rank computes the same.

    Hashed: neighbouring jobs and steps, which often share a node, begin with other ports. Where two begin
    with the same, or another program has the port, the next is tried.
    """
    digest = hashlib.sha256(key.encode()).digest()
    pairs = (int.from_bytes(digest[at : at + 2]) for at in range(0, 2 * _CANDIDATES, 2))
    return tuple(dict.fromkeys(_PORTS[pair % len(_PORTS)] for pair in pairs))


def nodes(environ: Mapping[str, str]) -> list[str]:
    """The names of the step's nodes, in SLURM's order; of the job's, outside a step; [] outside SLURM."""
    return expand(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "")


def expand(names: str) -> list[str]:
    """The hosts of a host list: `n[1-2],gpu[07]` → n1, n2, gpu07. Brackets may come more than once in a
    name. [] where the text is no host list, as where it was cut.
    """
    if not re.fullmatch(rf"{_HOST}(?:,{_HOST})*", names):
        return []
    found: list[str] = []
    for word in re.findall(_HOST, names):
        parts = re.split(r"\[([^\]]*)\]", word)  # texts and the insides of brackets, in turn
        choices = [list(_numbers(part)) if at % 2 else [part] for at, part in enumerate(parts)]
        found += ["".join(chosen) for chosen in itertools.product(*choices)]
    return found


def _numbers(ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if not last:
            yield first
        else:
            yield from (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))


def host_of(rank: int, environ: Mapping[str, str]) -> str:
    """The node on which srun starts a task; empty where the variables do not say."""
    names = nodes(environ)
    counts = _tasks_per_node(
        environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    )
    if not names or len(names) != len(counts):
        return ""
    distribution = environ.get("SLURM_DISTRIBUTION", "block").partition(":")[0].partition(",")[0]
    if distribution == "block":
        placed = [name for name, count in zip(names, counts) for _ in range(count)]
    elif distribution == "cyclic":
        turns = range(max(counts))
        placed = [name for turn in turns for name, count in zip(names, counts) if turn < count]
    else:
        return ""
    return placed[rank] if rank < len(placed) else ""


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` → 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what describes a job, or changes SLURM's programs."""
    return {name: value for name, value in environ.items() if name in _KEPT or not _FOREIGN.fullmatch(name)}


_addresses: dict[str, str] = {}


def node_address(name: str) -> str:
    """The NodeAddr of a node, by which SLURM itself reaches it; empty where there is none.

    It asks SLURM's controller, until that has answered: for names that DNS does not have only.
    """
    if name not in _addresses and (found := _ask_for_address(name)):
        _addresses[name] = found
    return _addresses.get(name, "")


def _ask_for_address(name: str) -> str:
    try:
        done = run(["scontrol", "--oneliner", "show", "node", name], seconds=SCONTROL_SECONDS)
    except OSError:
        return ""
    found = re.search(r"\bNodeAddr=(\S+)", done.stdout)
    return found[1] if found else ""

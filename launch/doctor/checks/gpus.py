"""GPUs of NVIDIA as nvidia-smi tells of them: driver, health, clocks, links, tasks.

Written from NVIDIA's documentation of nvidia-smi and of Xid errors, and tried on recorded outputs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from common.programs import output_of
from launch.doctor.check import Circumstances
from launch.doctor.checks import gpu_links, gpu_state
from launch.doctor.checks.machine import tasks_on_node
from launch.doctor.checks.software import torch_cuda
from launch.doctor.finding import Finding, error, note, ok, warning

SMI = "nvidia-smi"
DEVICES = Path("/proc/driver/nvidia/gpus")
REINSTALL = "load the driver that is installed: `modprobe nvidia`, or reboot the node"


def check(at: Circumstances) -> Iterator[Finding]:
    """Driver against torch's CUDA, then each GPU, then the links between them."""
    there = DEVICES.is_dir() and any(DEVICES.iterdir())
    try:
        text = output_of([SMI])
    except (RuntimeError, TimeoutError) as problem:
        yield from without_smi(str(problem), there=there)
        return
    if text is None:
        if there:
            yield warning(
                "gpus.driver", f"there are GPUs, and no {SMI} to look at them", "install the driver's tools"
            )
        else:
            yield ok("gpus.none", "no GPU of NVIDIA: ranks compute on the CPU")
        return
    yield from driver(gpu_state.cuda_of_driver(text), torch_cuda())
    try:
        gpus = gpu_state.read_gpus()
    except (RuntimeError, TimeoutError) as problem:
        yield error(
            "gpus.query", str(problem), "see `nvidia-smi -q` and `dmesg`; a GPU may have fallen off the bus"
        )
        return
    yield from gpu_state.judge(gpus)
    yield from gpu_state.remapped_rows(
        _asked(
            "--query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure",
            "--format=csv,noheader",
        )
    )
    yield from visible(at.environ, len(gpus))
    yield from gpu_links.topology(_asked("topo", "-m"))
    yield from gpu_links.nvlink(_asked("nvlink", "-s"))
    yield from gpu_links.xid_errors(gpu_links.kernel_log())


def _asked(*arguments: str) -> str:
    """The output of nvidia-smi; "" where this version, or this GPU, cannot say."""
    try:
        return output_of([SMI, *arguments]) or ""
    except (RuntimeError, TimeoutError):
        return ""


def without_smi(problem: str, *, there: bool) -> Iterator[Finding]:
    """nvidia-smi is installed and fails: an error where there are GPUs."""
    if "version mismatch" in problem:
        text = f"{problem}: the driver's library was updated, and the old driver is loaded"
        yield error("gpus.driver", text, REINSTALL)
    elif there:
        yield error("gpus.driver", problem, REINSTALL)
    else:
        yield note(
            "gpus.driver",
            f"{problem}: ranks compute on the CPU",
            "if this machine has GPUs: see `lspci`, load the driver; a container needs `--gpus all`",
        )


def driver(supported: str, built_for: str | None) -> Iterator[Finding]:
    """The CUDA that the driver supports against the CUDA that torch was built for.

    A driver runs programs of its own and of every earlier major release, and within one major release also of
    a later minor one ("minor version compatibility", CUDA Compatibility guide).
    """
    if built_for == "":
        text = (
            "this machine has GPUs, and the torch that is installed was built without CUDA: it uses the CPU"
        )
        yield error(
            "gpus.torch", text, "pip install torch from the index for CUDA: see pytorch.org/get-started"
        )
        return
    if not supported or built_for is None:
        return
    has, needs = _release(supported), _release(built_for)
    text = f"the driver supports CUDA {supported}, torch was built for {built_for}"
    same = {"CUDA of the driver": supported}
    if has[0] < needs[0]:
        remedy = f"install a driver for CUDA {needs[0]} or later, or a torch that was built for CUDA {has[0]}"
        yield error("gpus.cuda", text, remedy, same=same)
    elif has < needs:
        remedy = "nothing while it works; kernels compiled at run time may need the newer driver"
        yield note("gpus.cuda", text, remedy, same=same)
    else:
        yield ok("gpus.cuda", text, same=same)


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def visible(environ: Mapping[str, str], count: int) -> Iterator[Finding]:
    """GPUs that this process may use, against those that there are and against the tasks of a job."""
    told = environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in told.split(",") if name.strip()] if told is not None else None
    if names is not None:
        if not names:
            text = f"CUDA_VISIBLE_DEVICES is empty: none of {count} GPUs is used"
            yield warning("gpus.visible", text, "unset CUDA_VISIBLE_DEVICES, unless you mean it")
            return
        unknown = [name for name in names if name.isdecimal() and int(name) >= count]
        if unknown:
            text = f"CUDA_VISIBLE_DEVICES={told} names GPU {unknown[0]}, and there are 0 to {count - 1}"
            yield error(
                "gpus.visible",
                text,
                "unset it or correct it: CUDA ignores what follows a number that is not there",
            )
    usable = len(names) if names is not None else count
    if "SLURM_JOB_ID" not in environ:
        return
    tasks = tasks_on_node(environ)
    each = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if each.isdecimal() and int(each) > 1:
        text = f"SLURM_GPUS_PER_TASK={each}: a rank uses one GPU, so {int(each) - 1} of {each} are idle"
        yield warning("gpus.tasks", text, "ask for as many tasks a node as GPUs: --ntasks-per-node")
    elif not each and tasks < usable and tasks > 1:
        text = f"{tasks} tasks and {usable} GPUs a node: {usable - tasks} are idle"
        yield warning("gpus.tasks", text, f"--ntasks-per-node={usable}")
    elif not each and tasks > usable:
        text = f"{tasks} tasks share {usable} GPUs on a node"
        yield warning("gpus.tasks", text, f"--ntasks-per-node={usable}: a rank needs a GPU of its own")

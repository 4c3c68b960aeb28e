"""What nvidia-smi prints, in the shapes that its documentation shows, planted with faults.

No GPU was at hand: these texts are written by hand.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from launch.doctor.checks import gpu_links, gpu_state, gpus, measures
from launch.doctor.finding import Finding, Level

SMI = """
Sun Nov 22 08:00:00 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.15              Driver Version: 570.86.15      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
"""
SOUND = {
    "index": "0",
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-5d1d4b9e",
    "pci.bus_id": "00000000:19:00.0",
    "driver_version": "570.86.15",
    "pstate": "P0",
    "memory.total": "81559",
    "memory.used": "4",
    "ecc.mode.current": "Enabled",
    "ecc.errors.uncorrected.volatile.total": "0",
    "clocks.sm": "1980",
    "clocks.max.sm": "1980",
    "clocks_throttle_reasons.active": "0x0000000000000001",
    "temperature.gpu": "34",
    "power.limit": "700.00",
    "power.default_limit": "700.00",
    "pcie.link.gen.current": "5",
    "pcie.link.gen.max": "5",
    "pcie.link.width.current": "16",
    "pcie.link.width.max": "16",
    "compute_mode": "Default",
    "mig.mode.current": "Disabled",
    "utilization.gpu": "0",
}


def found(findings: Iterator[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings if finding.level > Level.OK}


def csv(**changed: str) -> str:
    values = {**SOUND, **{name.replace("__", "."): value for name, value in changed.items()}}
    return ", ".join(values[name] for name in gpu_state.FIELDS) + "\n"


def judged(*lines: str) -> dict[str, Level]:
    return found(gpu_state.judge(gpu_state.parse("".join(lines), gpu_state.FIELDS)))


def test_sound_gpus_have_no_finding() -> None:
    idle = csv(index="1", pcie__link__gen__current="1", pstate="P8")  # an idle link is slow on purpose
    workstation = csv(index="2", ecc__mode__current="[N/A]", mig__mode__current="[N/A]")
    (finding,) = gpu_state.judge(gpu_state.parse(csv() + idle + workstation, gpu_state.FIELDS))
    assert finding.level == Level.OK
    assert finding.found == "3 × NVIDIA H100 80GB HBM3; driver 570.86.15"


@pytest.mark.parametrize(
    ("field", "value", "check", "level"),
    [
        ("ecc__errors__uncorrected__volatile__total", "3", "gpus.ecc", Level.ERROR),
        ("ecc__mode__current", "Disabled", "gpus.ecc_off", Level.NOTE),
        ("clocks_throttle_reasons__active", "0x0000000000000048", "gpus.throttled", Level.WARNING),
        ("power__limit", "450.00", "gpus.power", Level.WARNING),
        ("pcie__link__width__current", "8", "gpus.pcie", Level.WARNING),
        ("memory__used", "60123", "gpus.used", Level.WARNING),
        ("compute_mode", "Prohibited", "gpus.mode", Level.ERROR),
        ("mig__mode__current", "Enabled", "gpus.mig", Level.WARNING),
    ],
)
def test_each_fault_of_a_gpu_is_found(field: str, value: str, check: str, level: Level) -> None:
    assert judged(csv(), csv(index="1", **{field: value})) == {check: level}


def test_a_slow_link_under_load_and_unlike_gpus_are_found() -> None:
    loaded = csv(pcie__link__gen__current="3", utilization__gpu="97")
    assert judged(loaded) == {"gpus.pcie_speed": Level.WARNING}
    assert judged(csv(), csv(name="NVIDIA A100-SXM4-80GB")) == {"gpus.alike": Level.WARNING}


def test_fields_that_a_driver_does_not_know_are_left_out() -> None:
    asked: list[str] = []

    def ask(argv: Sequence[str]) -> str:
        names = argv[1].removeprefix("--query-gpu=").split(",")
        asked.append(argv[1])
        for unknown in ("mig.mode.current", "clocks_throttle_reasons.active"):
            if unknown in names:
                raise RuntimeError(f'nvidia-smi: Field "{unknown}" is not a valid field to query.')
        return ", ".join(SOUND[name] for name in names)

    (gpu,) = gpu_state.read_gpus(ask)
    assert len(asked) == 3
    assert gpu.text("compute_mode") == "Default"
    assert gpu.text("mig.mode.current") == ""

    def fallen(argv: Sequence[str]) -> str:
        raise RuntimeError(
            "nvidia-smi: Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"
        )

    with pytest.raises(RuntimeError, match="device handle"):
        gpu_state.read_gpus(fallen)


def test_rows_that_wait_to_be_remapped_or_could_not_be_are_found() -> None:
    assert found(gpu_state.remapped_rows("GPU-1, No, No\nGPU-2, 0, 0\n")) == {}
    assert found(gpu_state.remapped_rows("GPU-1, 1, 0\n")) == {"gpus.rows": Level.WARNING}
    assert found(gpu_state.remapped_rows("GPU-1, Yes, Yes\n")) == {"gpus.rows": Level.ERROR}


def test_the_drivers_cuda_is_compared_with_torchs() -> None:
    assert gpu_state.cuda_of_driver(SMI) == "12.8"
    assert found(gpus.driver("12.8", "12.6")) == found(gpus.driver("13.0", "12.8")) == {}
    assert found(gpus.driver("12.2", "12.8")) == {"gpus.cuda": Level.NOTE}
    assert found(gpus.driver("12.8", "13.0")) == {"gpus.cuda": Level.ERROR}
    assert found(gpus.driver("12.8", "")) == {"gpus.torch": Level.ERROR}
    assert found(gpus.driver("12.8", None)) == {}


def test_a_driver_that_does_not_answer_is_an_error_only_where_there_are_gpus() -> None:
    mismatch = "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"
    failed = "nvidia-smi: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    assert found(gpus.without_smi(mismatch, there=True)) == {"gpus.driver": Level.ERROR}
    assert found(gpus.without_smi(failed, there=True)) == {"gpus.driver": Level.ERROR}
    assert found(gpus.without_smi(failed, there=False)) == {"gpus.driver": Level.NOTE}


def test_gpus_of_a_job_are_counted_against_its_tasks() -> None:
    def levels(**environ: str) -> dict[str, Level]:
        return found(gpus.visible(environ, 8))

    job = {"SLURM_JOB_ID": "7"}
    assert levels() == levels(**job, SLURM_TASKS_PER_NODE="8(x2)") == {}
    assert levels(**job, SLURM_TASKS_PER_NODE="1(x2)") == {}  # one task that starts the ranks of its node
    assert levels(**job, SLURM_TASKS_PER_NODE="4(x2)") == {"gpus.tasks": Level.WARNING}
    assert levels(**job, SLURM_TASKS_PER_NODE="16(x2)") == {"gpus.tasks": Level.WARNING}
    assert levels(**job, SLURM_GPUS_PER_TASK="2") == {"gpus.tasks": Level.WARNING}
    assert levels(**job, SLURM_GPUS_PER_TASK="h100:1", SLURM_TASKS_PER_NODE="8") == {}
    assert levels(CUDA_VISIBLE_DEVICES="") == {"gpus.visible": Level.WARNING}
    assert levels(CUDA_VISIBLE_DEVICES="0,9") == {"gpus.visible": Level.ERROR}
    assert levels(CUDA_VISIBLE_DEVICES="GPU-5d1d4b9e,1") == {}


TOPOLOGY = """
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\t{odd}\tPIX\t0-55,112-167\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tSYS\t0-55,112-167\t0\t\tN/A
GPU2\t{odd}\tNV18\t X \tSYS\t56-111,168-223\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""


def test_links_between_gpus_are_read() -> None:
    pairs = gpu_links.pairs(TOPOLOGY.format(odd="SYS"))
    assert pairs == {("GPU0", "GPU1"): "NV18", ("GPU0", "GPU2"): "SYS", ("GPU1", "GPU2"): "NV18"}
    (alike,) = gpu_links.topology(TOPOLOGY.format(odd="NV18"))
    assert (alike.level, alike.found) == (Level.OK, "every pair of GPUs is connected by NV18 (3 pairs)")
    (odd,) = gpu_links.topology(TOPOLOGY.format(odd="SYS"))
    assert odd.level == Level.NOTE
    assert "GPU0–GPU2: SYS" in odd.found
    assert list(gpu_links.topology("")) == []


def test_a_link_that_is_down_is_an_error() -> None:
    text = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d1d4b9e)\n"
    text += "\t Link 0: 26.562 GB/s\n\t Link 1: 26.562 GB/s\n"
    sound = text + text.replace("GPU 0", "GPU 1")
    assert found(gpu_links.nvlink(sound)) == {}
    assert found(gpu_links.nvlink("")) == {}
    (finding,) = gpu_links.nvlink(text + "GPU 1: NVIDIA\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n")
    assert finding.level == Level.ERROR
    assert finding.found.startswith("GPU 1: 1 of the 2 NVLinks")


def test_xid_errors_of_the_kernels_log_are_counted() -> None:
    log = "[ 12.3] NVRM: Xid (PCI:0000:3b:00): 79, pid=0, name=x, GPU has fallen off the bus.\n"
    log += "[ 99.0] NVRM: Xid (PCI:0000:19:00): 31, pid=4711, name=python, Ch 00000008, MMU Fault\n" * 2
    (broken, program) = gpu_links.xid_errors(log)
    assert (broken.level, program.level) == (Level.WARNING, Level.NOTE)
    assert broken.found == "GPU 0000:3b:00: Xid 79, the GPU fell off the bus"
    assert program.found == "GPU 0000:19:00: Xid 31 (2 times) since the node was booted"
    assert list(gpu_links.xid_errors("[ 1.0] usb 1-1: new device\n")) == []


# Measurements.


def figures(device: str, rates: Sequence[float], *, peak: float, share: float = 1.0, all_reduce: float = 0.0,
            nvlink: float = 0.0) -> dict[str, object]:  # fmt: skip
    ranks = [{"flops_per_second": rate, "share": share, "peak": peak, "threads": 1} for rate in rates]
    return {
        "device": device,
        "backend": "NCCL" if device != "CPU" else "gloo",
        "ranks": ranks,
        "all_reduce_bytes_per_second": all_reduce,
        "nvlink_bytes_per_second": nvlink,
    }


def test_matrix_products_are_judged_against_the_peak() -> None:
    def levels(device: str, *rates: float, peak: float, share: float = 1.0) -> dict[str, Level]:
        return found(measures.matmul(figures(device, rates, peak=peak, share=share)))

    h100 = "NVIDIA H100 80GB HBM3"
    assert levels(h100, 700e12, 690e12, peak=989e12) == {}
    assert levels(h100, 400e12, 400e12, peak=989e12) == {"speed.matmul": Level.WARNING}
    assert levels(h100, 700e12, 600e12, peak=989e12) == {"speed.uneven": Level.WARNING}
    assert levels("NVIDIA Unheard Of", 7e12, peak=0.0) == {}
    assert levels("CPU", 50e9, 50e9, peak=160e9) == {}
    assert levels("CPU", 9e9, 9e9, peak=160e9) == {"speed.matmul": Level.WARNING}
    assert levels("CPU", 50e9, 50e9, peak=160e9, share=0.4) == {"speed.matmul": Level.WARNING}


def test_the_all_reduce_is_judged_against_the_links() -> None:
    def levels(device: str, rate: float, nvlink: float = 0.0) -> dict[str, Level]:
        return found(measures.all_reduce(figures(device, [1, 1], peak=1, all_reduce=rate, nvlink=nvlink)))

    assert levels("CPU", 1e9) == {}
    assert levels("CPU", 0.01e9) == {"speed.all_reduce": Level.WARNING}
    assert levels("NVIDIA H100 80GB HBM3", 370e9, 450e9) == {}
    assert levels("NVIDIA H100 80GB HBM3", 100e9, 450e9) == {"speed.all_reduce": Level.NOTE}
    assert levels("NVIDIA H100 80GB HBM3", 2e9, 450e9) == {"speed.all_reduce": Level.WARNING}
    assert levels("NVIDIA L4", 10e9) == {}
    assert found(measures.all_reduce(figures("CPU", [1], peak=1))) == {}


def test_ranks_that_fail_are_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from launch.doctor.check import Circumstances

    monkeypatch.setattr(measures, "run_quietly", lambda job: (1, "", "noise\nerror: no memory\n"))
    (finding,) = measures.check(Circumstances((), {}))
    assert (finding.check, finding.level) == ("speed.ranks", Level.WARNING)
    assert finding.found.endswith("failed: no memory")

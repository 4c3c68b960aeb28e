"""What devices can do at best: the tables that the doctor compares with."""

from pathlib import Path

import pytest

from trainer.doctor import peaks

CPUINFO = "model name : X\nflags\t\t: fpu sse2 {flags}\ncpu MHz\t\t: 2600.0\ncpu MHz\t\t: 2500.0\n"


@pytest.mark.parametrize(
    ("flags", "operations"), [("", 8), ("avx", 16), ("avx avx2 fma", 32), ("avx2 avx512f", 64)]
)
def test_a_cpus_estimate_is_width_times_clock_times_cores(
    flags: str, operations: int, tmp_path: Path
) -> None:
    text = CPUINFO.format(flags=flags)
    assert peaks.cpu_flops_per_second(4, cpuinfo=text, clock=tmp_path / "none") == 4 * operations * 2.6e9
    (tmp_path / "cpuinfo_max_freq").write_text("3000000\n")
    assert (
        peaks.cpu_flops_per_second(1, cpuinfo=text, clock=tmp_path / "cpuinfo_max_freq") == operations * 3e9
    )


def test_what_is_not_known_is_zero(tmp_path: Path) -> None:
    assert peaks.cpu_flops_per_second(4, cpuinfo="", clock=tmp_path / "none") == 0
    assert peaks.nvlink_bytes_per_second("NVIDIA L4") == 0
    assert peaks.nvlink_bytes_per_second("NVIDIA H100 PCIe") < peaks.nvlink_bytes_per_second(
        "NVIDIA H100 80GB HBM3"
    )

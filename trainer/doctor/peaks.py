"""What a device can do at best: FLOP/s of a CPU as an estimate, bandwidth between GPUs from data sheets.

Dense bf16 FLOP/s of GPUs are in `trainer.metrics.speed.PEAK_FLOPS`. Imports no torch.
"""

import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MAXIMUM_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz

# fp32 operations per core and cycle: lanes × 2 fused multiply-add units × 2 operations. Some processors have
# one unit of 512 bits, and AMD's Zen 4 halves 512-bit operations: then the estimate is twice too high.
CPU_OPERATIONS = {"avx512f": 64, "avx2": 32, "avx": 16, "asimd": 16, "sse2": 8}

# NVLink's bytes per second in one direction from one GPU to all others: NVIDIA's data sheets, which give both
# directions together.
NVLINK = {
    "B200": 900e9,
    "GH200": 450e9,
    "H200": 450e9,
    "H20": 450e9,
    "H800": 200e9,
    "H100 NVL": 300e9,
    "H100 PCIe": 300e9,
    "H100": 450e9,
    "A800": 200e9,
    "A100": 300e9,
}


def nvlink_bytes_per_second(device_name: str) -> float:
    """NVLink's bandwidth of the named GPU in one direction; 0 where the device is not in the table."""
    return next((rate for name, rate in NVLINK.items() if name in device_name), 0.0)


def cpu_flops_per_second(cores: int, *, cpuinfo: str | None = None, clock: Path = MAXIMUM_CLOCK) -> float:
    """An estimate of the fp32 FLOP/s of `cores` cores: width of their vectors × clock; 0 where unknown.

    cpuinfo: the text of /proc/cpuinfo, read where it is not given.
    """
    try:
        text = CPUINFO.read_text() if cpuinfo is None else cpuinfo
    except OSError:  # no Linux
        return 0.0
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, flags=re.MULTILINE)
    words = set(flags[1].split()) if flags else set()
    operations = next((count for flag, count in CPU_OPERATIONS.items() if flag in words), 0)
    try:
        hertz = int(clock.read_text()) * 1e3
    except (OSError, ValueError):
        hertz = max(
            (float(mhz) * 1e6 for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.M)), default=0.0
        )
    return cores * operations * hertz

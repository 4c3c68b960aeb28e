"""Speed and memory of a run, as the metrics report them."""

import resource
import sys
import time

import torch

# Dense bf16 FLOP/s of one device, without sparsity, from the vendors' data sheets. The first name that
# occurs in the device's name counts, so the longer ones come first.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "H800": 989e12,
    "A800": 312e12,
    "A100": 312e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
}


def peak_flops(device_name: str) -> float:
    """Dense bf16 FLOP/s of the named device; 0 where it is not in the table."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), 0.0)


class Speed:
    """What is processed, seconds and, on a GPU, model FLOPs utilisation and peak memory between two readings.

    unit: what speed is measured in, such as tokens or images. Padding and what has no target count too: they
        are processed.
    units_per_row: how many a row has.
    flops_per_row: the model's forward and backward FLOPs for one row; recomputation does not count.
    devices: how many share the work.
    device: this rank's.

    The time from a step's end to the next call of `go` does not count, such as an evaluation's.
    """

    def __init__(
        self,
        *,
        unit: str = "tokens",
        units_per_row: int = 1,
        flops_per_row: float = 0.0,
        devices: int = 1,
        device: torch.device,
    ) -> None:
        self._unit, self._units = unit, units_per_row
        self._device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak_flops(name) * devices
        self._flops = flops_per_row
        self._rows = self._steps = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    def step(self, rows: int) -> None:
        """Count a step of `rows` rows (over all ranks) that ends now."""
        now = time.perf_counter()
        self._seconds += now - self._since
        self._since = now
        self._rows += rows
        self._steps += 1

    def go(self) -> None:
        """Start the clock again: the time since the last step belongs to no step."""
        self._since = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Since the last reading: `tokens_per_second` or that of another unit, `step_seconds`; a GPU's `mfu`,
        `peak_memory_bytes`; on a CPU `peak_rss_bytes`, what the process has held at most since it began.
        """
        steps, seconds = max(1, self._steps), max(self._seconds, 1e-9)
        rate = self._rows / seconds
        out = {
            f"{self._unit}_per_second": round(rate * self._units, 1),
            "step_seconds": round(seconds / steps, 6),
        }
        if self._peak and self._flops:
            out["mfu"] = round(rate * self._flops / self._peak, 4)
        if self._device.type == "cuda":
            out["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            out["peak_rss_bytes"] = peak if sys.platform == "darwin" else peak * 1024
        self._rows = self._steps = 0
        self._seconds = 0.0
        return out

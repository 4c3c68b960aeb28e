"""The state of each GPU, from `nvidia-smi --query-gpu`: health, clocks, PCIe, who else uses it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from common.programs import output_of
from launch.doctor.finding import Finding, error, note, ok, warning

# Names of `nvidia-smi --help-query-gpu`. What a driver does not know is left out of the question.
FIELDS = (
    "index", "name", "uuid", "pci.bus_id", "driver_version", "pstate", "memory.total", "memory.used",
    "ecc.mode.current", "ecc.errors.uncorrected.volatile.total", "clocks.sm", "clocks.max.sm",
    "clocks_throttle_reasons.active", "temperature.gpu", "power.limit", "power.default_limit",
    "pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max",
    "compute_mode", "mig.mode.current", "utilization.gpu",
)  # fmt: skip
# Bits of clocks_throttle_reasons.active (nvml.h, nvmlClocksThrottleReasons).
THROTTLED = {
    0x08: "hardware slowdown (heat, power brake or voltage)",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "an external power brake",
}
USED_MIB = 1024


@dataclass(frozen=True)
class Gpu:
    """One GPU: nvidia-smi's name of a field → its text; a field that has no value there is missing."""

    fields: dict[str, str]

    def __str__(self) -> str:
        return f"GPU {self.fields.get('index', '?')} ({self.fields.get('pci.bus_id', '?')})"

    def text(self, name: str) -> str:
        return self.fields.get(name, "")

    def number(self, name: str) -> float:
        """The field as a number; 0 where there is none."""
        found = re.match(r"-?[\d.]+", self.text(name))
        return float(found[0]) if found else 0.0


def read_gpus(ask: Callable[[Sequence[str]], str | None] = output_of) -> list[Gpu]:
    """Ask nvidia-smi for every field that this driver knows. RuntimeError where nvidia-smi fails."""
    names = list(FIELDS)
    while True:
        try:
            text = ask(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"])
        except RuntimeError as problem:
            unknown = re.search(r'Field "([^"]+)" is not a valid field', str(problem))
            if unknown is None or unknown[1] not in names:
                raise
            names.remove(unknown[1])
            continue
        return parse(text or "", names)


def parse(text: str, names: Sequence[str]) -> list[Gpu]:
    """One GPU a line; `[N/A]`, `[Not Supported]` and the like are fields without a value."""
    gpus = []
    for line in text.strip().splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == len(names):
            known = {name: value for name, value in zip(names, values) if not value.startswith("[")}
            gpus.append(Gpu(known))
    return gpus


def cuda_of_driver(text: str) -> str:
    """`CUDA Version: 12.8` in what nvidia-smi prints → 12.8; "" without."""
    found = re.search(r"CUDA Version:\s*([\d.]+)", text)
    return found[1] if found else ""


def judge(gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """What there is, and everything about single GPUs that is not as it should be."""
    names = [gpu.text("name") for gpu in gpus]
    told = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "none"
    driver = gpus[0].text("driver_version") if gpus else ""
    yield ok("gpus.list", f"{told}; driver {driver or 'unknown'}", same={"GPUs": told, "driver": driver})
    if len(set(names)) > 1:
        yield warning(
            "gpus.alike",
            f"GPUs differ: {told}: the slowest sets the pace",
            "choose with CUDA_VISIBLE_DEVICES",
        )
    for gpu in gpus:
        yield from _health(gpu)
        yield from _clocks(gpu)
        yield from _pcie(gpu)
        yield from _use(gpu)


def _health(gpu: Gpu) -> Iterator[Finding]:
    if errors := int(gpu.number("ecc.errors.uncorrected.volatile.total")):
        text = f"{gpu}: {errors} memory errors that ECC could not correct since the driver was loaded"
        yield error(
            "gpus.ecc",
            text,
            "drain the node and reset the GPU (`nvidia-smi -r`); replace it if they come again",
        )
    if gpu.text("ecc.mode.current") == "Disabled":
        yield note(
            "gpus.ecc_off", f"{gpu}: ECC is off: flipped bits are not seen", "`nvidia-smi -e 1`, then reboot"
        )


def _clocks(gpu: Gpu) -> Iterator[Finding]:
    try:
        reasons = int(gpu.text("clocks_throttle_reasons.active"), 16)
    except ValueError:
        return
    found = [why for bit, why in THROTTLED.items() if reasons & bit]
    if found:
        clocks = f"{gpu.number('clocks.sm'):g} of {gpu.number('clocks.max.sm'):g} MHz"
        text = f"{gpu} is slowed down by {', '.join(found)}: {clocks}, {gpu.number('temperature.gpu'):g} °C"
        yield warning(
            "gpus.throttled", text, "look at cooling and power of the node; leave it out until mended"
        )
    limit, usual = gpu.number("power.limit"), gpu.number("power.default_limit")
    if 0 < limit < 0.95 * usual:
        text = f"{gpu}: power is limited to {limit:g} W of {usual:g} W"
        yield warning(
            "gpus.power", text, f"`nvidia-smi -pl {usual:g}`, unless the site limits power on purpose"
        )


def _pcie(gpu: Gpu) -> Iterator[Finding]:
    width, widest = gpu.number("pcie.link.width.current"), gpu.number("pcie.link.width.max")
    if 0 < width < widest:
        text = f"{gpu}: PCIe has {width:g} of {widest:g} lanes"
        yield warning(
            "gpus.pcie", text, "seat the card again, try another slot; some boards share lanes on purpose"
        )
    generation, latest = gpu.number("pcie.link.gen.current"), gpu.number("pcie.link.gen.max")
    # An idle GPU lowers its link to save power.
    if 0 < generation < latest and gpu.number("utilization.gpu") > 20:
        text = f"{gpu} is at work, and PCIe runs as generation {generation:g} of {latest:g}"
        yield warning(
            "gpus.pcie_speed", text, "look at the slot's setting in the firmware (BIOS), and at risers"
        )


def _use(gpu: Gpu) -> Iterator[Finding]:
    if (used := gpu.number("memory.used")) > USED_MIB:
        text = f"{gpu}: {used:,.0f} of {gpu.number('memory.total'):,.0f} MiB are in use already"
        yield warning(
            "gpus.used",
            text,
            "see `nvidia-smi`: end processes left over from an earlier run, or choose another GPU",
        )
    mode = gpu.text("compute_mode")
    if mode in ("Prohibited", "Exclusive_Thread"):
        yield error("gpus.mode", f"{gpu}: compute mode {mode} refuses a rank", "`nvidia-smi -c DEFAULT`")
    if gpu.text("mig.mode.current") == "Enabled":
        text = f"{gpu} is divided by MIG: ranks get slices, and NCCL does not connect them"
        yield warning("gpus.mig", text, "`nvidia-smi -mig 0`, or run one rank on one slice")


def remapped_rows(text: str) -> Iterator[Finding]:
    """`nvidia-smi --query-remapped-rows=gpu_uuid,remapped_rows.pending,remapped_rows.failure`."""
    for line in text.strip().splitlines():
        uuid, _, rest = line.partition(",")
        pending, _, failure = (part.strip() for part in rest.partition(","))
        yes = ("1", "Yes")
        if failure in yes:
            text = f"GPU {uuid}: a row of its memory could not be remapped"
            yield error("gpus.rows", text, "drain the node and replace the GPU")
        elif pending in yes:
            text = f"GPU {uuid}: rows of its memory wait to be remapped"
            yield warning("gpus.rows", text, "reset the GPU (`nvidia-smi -r`) before the next run")

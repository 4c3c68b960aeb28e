"""Links between GPUs, and what the kernel logged about GPUs."""

import re
from collections import Counter
from collections.abc import Iterator

from common.programs import output_of
from launch.doctor.finding import Finding, error, note, ok, warning

# Xid numbers that mean broken hardware or a GPU that has to be reset (NVIDIA's "XID Errors").
BROKEN = {
    48: "a memory error that ECC could not correct",
    63: "a row of memory was retired or remapped",
    64: "a row of memory could not be retired or remapped",
    74: "an error on NVLink",
    79: "the GPU fell off the bus",
    92: "a high rate of memory errors that ECC corrected",
    94: "a contained memory error",
    95: "an uncontained memory error",
    119: "the GPU's system processor did not answer",
    120: "an error of the GPU's system processor",
    140: "an unrecovered memory error",
}


def topology(text: str) -> Iterator[Finding]:
    """`nvidia-smi topo -m`: how each pair of GPUs is connected."""
    links = pairs(text)
    if not links:
        return
    kinds = Counter(links.values())
    told = ", ".join(f"{kind} ({count} pair{'s' * (count > 1)})" for kind, count in kinds.most_common())
    nvlinks = {kind for kind in kinds if kind.startswith("NV")}
    if not nvlinks:
        yield ok("gpus.topology", f"GPUs are connected by {told}", same={"GPU links": told})
    elif len(kinds) == 1:
        yield ok("gpus.topology", f"every pair of GPUs is connected by {told}", same={"GPU links": told})
    else:
        usual = kinds.most_common(1)[0][0]
        odd = [f"{a}–{b}: {kind}" for (a, b), kind in links.items() if kind != usual]
        text = f"GPUs are not connected alike: {told}; unlike most: {', '.join(odd[:4])}" + " …" * (
            len(odd) > 4
        )
        remedy = "right for boards that link GPUs in groups; else see `nvidia-smi nvlink -s`"
        yield note("gpus.topology", text, remedy, same={"GPU links": told})


def pairs(text: str) -> dict[tuple[str, str], str]:
    """The matrix of `nvidia-smi topo -m` → (GPU0, GPU1) → NV18, PIX, PXB, PHB, NODE or SYS."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)  # the heading is underlined
    rows = [line.split() for line in plain.splitlines()]
    heading = next((row for row in rows if row[:1] == ["GPU0"] and len(row) > 1 and row[1] != "X"), [])
    columns = [name for name in heading if re.fullmatch(r"GPU\d+", name)]
    found = {}
    for row in rows:
        if row and row is not heading and row[0] in columns and len(row) > len(columns):
            for other, kind in zip(columns, row[1:]):
                if columns.index(row[0]) < columns.index(other):
                    found[row[0], other] = kind
    return found


def nvlink(text: str) -> Iterator[Finding]:
    """`nvidia-smi nvlink -s`: links that are inactive on a GPU that has active ones."""
    gpu, states = "", dict[str, Counter[bool]]()
    for line in text.splitlines():
        if found := re.match(r"GPU (\d+):", line):
            gpu = found[1]
        elif found := re.match(r"\s+Link (\d+): (.*)", line):
            states.setdefault(gpu, Counter())["inactive" not in found[2]] += 1
    usual = max((count[True] for count in states.values()), default=0)
    for gpu, count in states.items():
        if count[True] < usual:
            text = f"GPU {gpu}: {count[True]} of the {usual} NVLinks that other GPUs have are active"
            yield error(
                "gpus.nvlink", text, "drain the node: reset its GPUs and the NVSwitch, see nv-fabricmanager"
            )


def kernel_log() -> str:
    """What the kernel logged; "" where this user may not read it."""
    for argv in (["dmesg"], ["journalctl", "-k", "-b", "-q", "--no-pager", "-g", "Xid"]):
        try:
            if text := output_of(argv):
                return text
        except (RuntimeError, TimeoutError):
            continue
    return ""


def xid_errors(log: str) -> Iterator[Finding]:
    """`NVRM: Xid (PCI:0000:3b:00): 79, pid=…` in the kernel's log: the latest of each GPU and number."""
    counted = Counter(
        (found[1], int(found[2])) for found in re.finditer(r"NVRM: Xid \((?:PCI:)?([\w:.]+)\): (\d+)", log)
    )
    for (bus, number), count in counted.items():
        times = f" ({count} times)" if count > 1 else ""
        if number in BROKEN:
            text = f"GPU {bus}: Xid {number}, {BROKEN[number]}{times}"
            yield warning(
                "gpus.xid", text, "drain the node and reset the GPU; replace it if that comes again"
            )
        else:
            text = f"GPU {bus}: Xid {number}{times} since the node was booted"
            yield note(
                "gpus.xid",
                text,
                "mostly a fault of a program (13, 31, 43, 45); see NVIDIA's list of Xid errors",
            )

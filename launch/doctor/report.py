"""How findings are shown: lines for people, as they are made; one JSON document for scripts."""

import sys
from collections.abc import Sequence
from typing import Any

from common.printable import printable
from launch import tables
from launch.doctor.finding import Finding, Level, worst

MOST_SHOWN = 8  # nodes that are named with one finding
COLOURS = {Level.OK: "32", Level.NOTE: "36", Level.WARNING: "33", Level.ERROR: "31"}

# Figure → heading and factor of its column.
COLUMNS = {
    "matmul_flops_per_second": ("matmul GFLOP/s", 1e-9),
    "all_reduce_bytes_per_second": ("all-reduce GB/s", 1e-9),
    "send_bytes_per_second": ("send GB/s", 1e-9),
    "round_trip_seconds": ("round trip ms", 1e3),
    "clock_offset_seconds": ("clock s", 1.0),
    "write_bytes_per_second": ("write MB/s", 1e-6),
    "fsync_seconds": ("fsync ms", 1e3),
}


def show(finding: Finding) -> None:
    """Print a finding, and its remedy on a line of its own."""
    level = f"{finding.level!s:8}"
    if sys.stdout.isatty():
        level = f"\x1b[{COLOURS[finding.level]}m{level}\x1b[0m"
    host = f"{finding.host}: " if finding.host else ""
    print(f"{level} {finding.check:22} {host}{printable(finding.found)}", flush=True)
    if finding.remedy:
        print(f"{'':31} → {printable(finding.remedy)}", flush=True)


def show_together(findings: Sequence[Finding]) -> None:
    """Print findings of several nodes that are not well: what several have alike stands there once."""
    alike: dict[tuple[str, Level, str, str], list[str]] = {}
    for finding in findings:
        if finding.level > Level.OK:
            key = (finding.check, finding.level, finding.found, finding.remedy)
            alike.setdefault(key, []).append(finding.host)
    for key, hosts in alike.items():
        shown = ", ".join(sorted(hosts)[:MOST_SHOWN])
        more = len(hosts) - MOST_SHOWN
        show(Finding(*key).at(f"{shown} and {more} more" if more > 0 else shown))


def figures(findings: Sequence[Finding], hosts: Sequence[str]) -> None:
    """Print what was measured on each node as a table."""
    found = {(f.host, name): value for f in findings for name, value in f.measured.items()}
    shown = [name for name in COLUMNS if any((host, name) in found for host in hosts)]
    lines = [
        [host, *(found[host, name] * COLUMNS[name][1] if (host, name) in found else None for name in shown)]
        for host in hosts
    ]
    tables.rows("measured", ["node", *(COLUMNS[name][0] for name in shown)], lines)


def conclude(findings: Sequence[Finding]) -> None:
    """Print how many findings there are of each level, and the verdict."""
    counts = {level: sum(finding.level == level for finding in findings) for level in Level}
    told = ", ".join(
        f"{counts[level]} {level}{'s' * (counts[level] != 1)}"
        for level in (Level.ERROR, Level.WARNING, Level.NOTE)
        if counts[level]
    )
    verdict = "not fit to train: mend the errors" if worst(findings) == Level.ERROR else "fit to train"
    print(f"{verdict} ({told or 'nothing found'})", flush=True)


def document(findings: Sequence[Finding], **more: Any) -> None:
    """Print one JSON document."""
    fit = worst(findings) < Level.ERROR
    tables.document({"fit": fit, **more, "findings": [finding.document() for finding in findings]})

"""How findings are shown: lines for people, as they are made; one JSON document for scripts."""

import sys
from collections.abc import Sequence
from typing import Any

from launch import tables
from launch.doctor.finding import Finding, Level, worst

COLOURS = {Level.OK: "32", Level.NOTE: "36", Level.WARNING: "33", Level.ERROR: "31"}


def show(finding: Finding) -> None:
    """Print a finding, and its remedy on a line of its own."""
    level = f"{finding.level!s:8}"
    if sys.stdout.isatty():
        level = f"\x1b[{COLOURS[finding.level]}m{level}\x1b[0m"
    host = f"{finding.host}: " if finding.host else ""
    print(f"{level} {finding.check:22} {host}{finding.found}", flush=True)
    if finding.remedy:
        print(f"{'':31} → {finding.remedy}", flush=True)


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

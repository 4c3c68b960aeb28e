"""Examines this machine: every check of the catalogue, one after another."""

from collections.abc import Iterator

from launch.doctor.apart import findings_of
from launch.doctor.check import Circumstances
from launch.doctor.checks.catalogue import checks
from launch.doctor.finding import Finding


def examine(at: Circumstances) -> Iterator[Finding]:
    """Yield the findings of every check, each as soon as it is made."""
    for check in checks(at):
        yield from findings_of(check, at)

"""Which nodes differ from the others, and which should be left out. Pure functions.

A node is slow at something where its figure is worse than the median of the other nodes' by more than a
factor (`RULES`) and by more than five times the median deviation of the others from that median: neither is
moved by the slow node itself, nor by a few others. With fewer than four nodes there is too little to tell
noise by: then the square of the factor counts instead.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.doctor.finding import Finding, Level, error, warning

DEVIATIONS = 5.0
ENOUGH_FOR_DEVIATIONS = 3
# Facts without which ranks compute differently or do not talk to each other; others may differ for a while.
GRAVE = ("torch", "Python", "germinal", "nvidia-nccl-cu12", "nvidia-nccl-cu13")


@dataclass(frozen=True)
class Rule:
    """When a node counts as slow.

    what: what is measured, in words.
    factor: it is this many times worse than the median of the others.
    least: and by at least so much, in the figure's unit.
    more_is_better: whether the figure is a rate; else it is a time.
    """

    what: str
    factor: float
    least: float = 0.0
    more_is_better: bool = True


RULES = {
    "matmul_flops_per_second": Rule("matrix products", 1.25),
    "all_reduce_bytes_per_second": Rule("the all-reduce over local ranks", 2.0),
    "send_bytes_per_second": Rule("sending to other nodes", 2.0),
    "write_bytes_per_second": Rule("durable writes", 3.0),
    "fsync_seconds": Rule("small durable writes", 3.0, 0.02, more_is_better=False),
    "round_trip_seconds": Rule("round trips to other nodes", 5.0, 0.005, more_is_better=False),
    "memory_bytes": Rule("memory", 1.1),
    "cores": Rule("cores", 1.1),
}


def slow(figures: Mapping[str, float], rule: Rule) -> dict[str, float]:
    """The nodes that are slow by `rule`, and how many times worse each is than the median of the others.

    figures: node → its figure.
    """
    found = {}
    for host, mine in figures.items():
        others = [figure for other, figure in figures.items() if other != host]
        if not others:
            continue
        middle = statistics.median(others)
        worse = middle - mine if rule.more_is_better else mine - middle
        small, large = (mine, middle) if rule.more_is_better else (middle, mine)
        times = large / small if small > 0 else float("inf")
        deviation = statistics.median(abs(figure - middle) for figure in others)
        few = len(others) < ENOUGH_FOR_DEVIATIONS
        factor, margin = (rule.factor**2, 0.0) if few else (rule.factor, DEVIATIONS * deviation)
        if worse > max(rule.least, margin) and times > factor:
            found[host] = times
    return found


def compare(findings: Sequence[Finding], hosts: Sequence[str]) -> Iterator[Finding]:
    """Findings about nodes that are slower than the others, or that lack or have something else."""
    for name, rule in RULES.items():
        figures = {f.host: f.measured[name] for f in findings if name in f.measured and f.host in hosts}
        for host, times in slow(figures, rule).items():
            text = f"{times:.1f} times worse at {rule.what} than the median of the other nodes"
            yield warning(f"nodes.{name}", text, "leave it out, or find out what holds it up", host=host)
    names = dict.fromkeys(name for finding in findings for name in finding.same)
    for name in names:
        yield from _alike(name, {f.host: f.same[name] for f in findings if name in f.same})


def _alike(name: str, facts: Mapping[str, str]) -> Iterator[Finding]:
    counts = Counter(facts.values())
    if len(counts) < 2:
        return
    usual, _ = counts.most_common(1)[0]  # of several equally frequent ones the first node's
    make = error if name in GRAVE else warning
    for host, fact in facts.items():
        if fact != usual:
            text = f"{name} is {fact}, on most other nodes {usual}"
            yield make(f"nodes.{name.replace(' ', '_')}", text, "make it the same on every node", host=host)


def to_leave_out(findings: Sequence[Finding], hosts: Sequence[str]) -> list[str]:
    """The nodes to leave out: those with an error that at most half of all have, and those that are slow
    or differ. The slow ones stay where all nodes would be left out; and if each node has an error of its own,
    none stands out, and none is left out.
    """
    errors = Counter(finding.check for finding in findings if finding.level == Level.ERROR)
    broken = {f.host for f in findings if f.level == Level.ERROR and errors[f.check] <= len(hosts) / 2}
    slow_ones = {finding.host for finding in findings if finding.check.startswith("nodes.")}
    for bad in (broken | slow_ones, broken):
        left_out = [host for host in hosts if host in bad]
        if len(left_out) < len(hosts):
            return left_out
    return []

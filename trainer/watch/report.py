"""What is told of a hang: which ranks are behind, three lines for the terminal, a file with every stack.

Ranks at the same place are one group, in the lines and in the file, so that both stay small in a run of
thousands of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.watch.whereabouts import Standing, Whereabouts

MOST_GROUPS = 256  # listed in the file
MOST_STACKS = 64  # groups of which the file has the stacks
MOST_HOSTS = 4  # named in one place


@dataclass(frozen=True)
class Finding:
    """Who is behind.

    ranks: the ranks; empty where all are at the same place.
    hosts: their machines.
    lines: three, for the terminal; in the last one {file} stands for the file's path.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    lines: tuple[str, str, str]


@dataclass(frozen=True)
class Group:
    """Ranks at the same place."""

    ranks: tuple[int, ...]
    members: tuple[Whereabouts, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.host for member in self.members))


def find(
    over: Standing, found: Sequence[Whereabouts], silent: Mapping[int, str], hosts: Mapping[int, str]
) -> Finding:
    """Find the ranks that the others wait for.

    over: the phase that has lasted too long, on the rank that noticed.
    found: where the ranks are that answered.
    silent: rank → why it does not answer, or "" where that is not known; of the ranks that did not.
    hosts: the machines of the silent ranks.
    """
    told = f"hang: {over.place} has lasted {over.seconds:.0f} s, and may last {over.bound_seconds:.0f} s"
    groups = grouped(found)
    if silent:
        why = next((why for why in silent.values() if why), "")
        reason = f": {why}" if why else ": stopped, or its machine or link lost?"
        ranks, places = tuple(sorted(silent)), tuple(dict.fromkeys(hosts[rank] for rank in sorted(silent)))
        behind, verb = set(ranks), "does not answer" if len(ranks) == 1 else "do not answer"
        first = f"{told}: {who(ranks, places)} {verb}{reason}"
    else:
        late = _behind(over.track, groups)
        behind = {rank for group in late for rank in group.ranks}
        ranks = tuple(sorted(behind))
        places = tuple(dict.fromkeys(host for group in late for host in group.hosts))
        first = f"{told}: {_who_is_behind(over, groups, late)}"
    # Of ranks that wait for each other in different calls, the first group is in the first line.
    others = [group for group in groups if not behind.issuperset(group.ranks)] or groups[1:]
    second = "; ".join(_at(over, group) for group in others[:2])
    if len(others) > 2:
        second += f"; and {sum(len(group.ranks) for group in others[2:])} ranks elsewhere"
    third = "the stacks of all ranks are in {file}; all ranks end"
    return Finding(ranks, places, (first, second or "no other rank is known of", third))


def _behind(track: str, groups: Sequence[Group]) -> list[Group]:
    """The groups that the others wait for; none where all are in the same call.

    Those that wait for no other rank; of ranks that all wait, or none of which does: those at the lowest
    step; else those in the rarest call, or all where two calls are equally rare.
    """
    places = [(group, group.members[0].standing(track)) for group in groups]
    known = [(group, standing) for group, standing in places if standing is not None]
    busy = [group for group, standing in known if not standing.waits]
    if busy and len(busy) < len(known):
        return busy
    if len(known) == 1:
        return busy
    lowest = min((standing.step for _, standing in known), default=0)
    late = [group for group, standing in known if standing.step == lowest]
    if len(late) < len(known):
        return late
    sizes = [len(group.ranks) for group, _ in known]
    rarest = [group for group, _ in known if len(group.ranks) == min(sizes)]
    return rarest if len(rarest) < len(known) else [group for group, _ in known]


def _who_is_behind(over: Standing, groups: Sequence[Group], late: Sequence[Group]) -> str:
    if not late:
        return "all ranks wait in the same call: is a link between them cut, or a device stuck?"
    if len(late) == len(groups) > 1:
        return f"ranks are in different calls: {_at(over, late[0])}"
    more = f"; and {sum(len(group.ranks) for group in late[1:])} ranks more" if len(late) > 1 else ""
    return f"{_at(over, late[0])}{more}"


def _at(over: Standing, group: Group) -> str:
    """`rank 1 on n2 is in …`, with the phase where that is not the one that hangs."""
    member = group.members[0]
    standing = member.standing(over.track)
    verb = "is" if len(group.ranks) == 1 else "are"
    if standing is None:
        return f"{who(group.ranks, group.hosts)} {verb} between phases"
    waits = " and wait for other ranks" if len(group.ranks) > 1 else " and waits for other ranks"
    collective = f" ({member.unfinished[0]})" if member.unfinished and standing.waits else ""
    place = "" if standing.place == over.place else f"{standing.place}, in "
    return (
        f"{who(group.ranks, group.hosts)} {verb} in {place}{standing.call or 'no Python code'}"
        f"{waits if standing.waits else ''}{collective}"
    )


def document(
    finding: Finding,
    found: Sequence[Whereabouts],
    silent: Mapping[int, str],
    stacks: Mapping[int, str],
    *,
    heading: str,
) -> str:
    """The text of the file.

    stacks: of one rank of each group; groups without one are listed without.
    heading: which run and which start, and when.
    """
    lines = [heading, *finding.lines[:2], ""]
    if silent:
        lines.append(f"{who(tuple(sorted(silent)), ())}: no answer")
    groups = grouped(found, finding.ranks)
    for group in groups[:MOST_GROUPS]:
        member = group.members[0]
        lines.append(who(group.ranks, group.hosts))
        for standing in member.standings:
            lines.append(
                f"  {standing.track}: {standing.place}, for {standing.seconds:.0f} of at most "
                f"{standing.bound_seconds:.0f} s, in {standing.call or 'no Python code'}"
            )
        lines += [f"  collective under way: {collective}" for collective in member.unfinished]
    if len(groups) > MOST_GROUPS:
        lines.append(f"and {sum(len(group.ranks) for group in groups[MOST_GROUPS:])} ranks in as many places")
    for group in groups[:MOST_STACKS]:
        shown = next((rank for rank in group.ranks if rank in stacks), None)
        if shown is not None:
            same = f", the same as of {who(group.ranks, ())}" if len(group.ranks) > 1 else ""
            lines += ["", f"stacks of rank {shown}{same}:", stacks[shown]]
    return "\n".join(lines) + "\n"


def grouped(found: Sequence[Whereabouts], behind: Sequence[int] = ()) -> list[Group]:
    """Put ranks at the same place together. First come the groups with ranks that are `behind`, then the
    smallest, for what is rare tells most.
    """
    by_key: dict[str, list[Whereabouts]] = {}
    for member in sorted(found, key=lambda member: member.rank):
        by_key.setdefault(member.key, []).append(member)
    groups = [Group(tuple(m.rank for m in members), tuple(members)) for members in by_key.values()]
    late = frozenset(behind)
    return sorted(groups, key=lambda group: (late.isdisjoint(group.ranks), len(group.ranks), group.ranks))


def who(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """`rank 3 on n2`, `ranks 0-5, 7 on n1, n2`."""
    named = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranges(ranks)}"
    if not hosts:
        return named
    more = f" and {len(hosts) - MOST_HOSTS} more hosts" if len(hosts) > MOST_HOSTS else ""
    return f"{named} on {', '.join(hosts[:MOST_HOSTS])}{more}"


def ranges(numbers: Sequence[int], most: int = 16) -> str:
    """`0-5, 7` of sorted numbers; at most `most` pieces, and how many more there are."""
    pieces: list[list[int]] = []
    for number in numbers:
        if pieces and number == pieces[-1][1] + 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    shown = [f"{a}" if a == b else f"{a}-{b}" for a, b in pieces[:most]]
    if len(pieces) > most:
        shown.append(f"and {sum(b - a + 1 for a, b in pieces[most:])} more")
    return ", ".join(shown)

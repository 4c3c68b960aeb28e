"""On which nodes of the allocation the ranks run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launch.supervise.policy import Attempt


@dataclass
class Placing:
    """Chooses the nodes of the next start.

    wanted: nodes that the run asks for.
    fits: whether the run has a layout for this many nodes, fewer than `wanted`.
    excluded: nodes that are not used because ranks failed there, in the order in which they did.
    """

    wanted: int
    fits: Callable[[int], bool]
    excluded: list[str] = field(default_factory=list)
    _blamed: set[str] = field(default_factory=set)

    def exclude(self, attempt: Attempt, present: Sequence[str]) -> bool:
        """Leave out the node of the rank that failed, if the run can do without; return whether it is now.

        With a node to spare any failure suffices: the cause may be the machine, and trying another costs
        nothing. Fewer ranks are slower, so without one the machine itself must be lost, its rank hang or be
        killed, or the failure be the second there.
        """
        host = attempt.host
        if not host or host in self.excluded:
            return False
        is_machines = attempt.host_lost or attempt.hung or attempt.code < 0 or host in self._blamed
        self._blamed.add(host)
        left = [node for node in present if node not in (*self.excluded, host)]
        if len(left) >= self.wanted or (is_machines and self.fits(len(left))):
            self.excluded.append(host)
            return True
        return False

    def choose(self, present: Sequence[str]) -> tuple[str, ...]:
        """Return the nodes of the next start; none where the run has no layout for those that are left.

        A node that was excluded is used again where there are too few without.
        """
        usable = [node for node in present if node not in self.excluded]
        for host in self.excluded:
            if len(usable) >= self.wanted or (usable and self.fits(len(usable))):
                break
            usable += [host] if host in present else []
        usable = [node for node in present if node in usable]  # SLURM numbers the ranks in its own order
        self.excluded = [host for host in self.excluded if host not in usable]
        for count in range(min(len(usable), self.wanted), 0, -1):
            if count == self.wanted or self.fits(count):
                return tuple(usable[:count])
        return ()

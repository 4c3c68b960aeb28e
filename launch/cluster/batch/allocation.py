"""What SLURM says of this job and its nodes."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from launch.cluster import slurm
from parallel.world.slurm import expand

# For how long a controller that does not answer is asked to requeue the job, and how often.
CONTROLLER_SECONDS, CONTROLLER_PAUSE_SECONDS = 600.0, 10.0
_REFUSAL = re.compile(r"disabled|denied|[Ii]nvalid job|not permitted")  # scontrol's words for a no
_UNUSABLE = re.compile(r"down|fail|unk|\*")  # sinfo's states; *: the node does not respond


@dataclass(frozen=True)
class JobState:
    """What SLURM does with the job.

    state: such as RUNNING, COMPLETING, CANCELLED, TIMEOUT; "" where SLURM did not say.
    reason: such as TimeLimit; None (the word) without one.
    restarts: how often SLURM has put the job back into the queue.
    nodes: the job's nodes, as a host list; "" where SLURM did not say.
    preempted: whether the job has to make way for another one.
    """

    state: str = ""
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    preempted: bool = False

    @property
    def is_ending(self) -> bool:
        """Whether SLURM ends the job, for whatever reason."""
        return self.state in ("COMPLETING", "CANCELLED", "PREEMPTED", "NODE_FAIL", "TIMEOUT")

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has called scancel: an end for which SLURM has no reason of its own."""
        return self.state in ("COMPLETING", "CANCELLED") and self.reason == "None" and not self.preempted

    def request(self) -> str:
        """Return in words why the job was asked to save."""
        if self.reason == "TimeLimit" or self.state == "TIMEOUT":
            return "the time limit is reached"
        if self.preempted:
            return "preempted"
        if self.is_ending:
            return f"SLURM ends the job ({self.reason if self.reason != 'None' else self.state})"
        return "asked to save (time limit or preemption)"


@dataclass(frozen=True)
class Allocation:
    """This job.

    job: its number.
    restarts: how often it was requeued before this start.
    nodes: the names of its nodes when it started, in SLURM's order.
    """

    job: str
    restarts: int
    nodes: tuple[str, ...]

    def state(self) -> JobState:
        """Ask SLURM for the state of the job."""
        said = slurm.facts(self.job, os.environ)
        restarts = said.get("RestartCnt", "")
        return JobState(
            state=said.get("State", ""),
            reason=said.get("Reason", ""),
            restarts=int(restarts) if restarts.isdecimal() else 0,
            nodes=said.get("NodeList", ""),
            preempted=said.get("PreemptTime", "")[:1].isdecimal(),  # else N/A
        )

    def present(self) -> tuple[str, ...]:
        """The job's nodes that SLURM can reach. All of them where SLURM does not answer."""
        # A job that goes on without a lost node (--no-kill) does not have that node any more.
        nodes = tuple(expand(self.state().nodes)) or self.nodes
        states = slurm.node_states(nodes, os.environ)
        return tuple(node for node in nodes if not _UNUSABLE.search(states.get(node, "")))

    def is_requeued(self, now: JobState) -> bool:
        """Whether SLURM has put the job back into the queue since this start; `now`: its present state."""
        return now.restarts > self.restarts or now.state == "PENDING"

    def put_back(self, say: Callable[[str], None]) -> str:
        """Have SLURM put the job back into the queue; return one line where it is not known to have. A
        controller that is away for some minutes, as while it is started again, is asked again.
        """
        until = time.monotonic() + CONTROLLER_SECONDS
        while answer := self.requeue():
            if _REFUSAL.search(answer):
                return f"SLURM does not requeue the job: {answer}; submit the run again"
            if self.is_requeued(self.state()):  # it had the request, and could not say so
                break
            if time.monotonic() > until:
                remedy = "where squeue does not show the job any more, submit the run again"
                return f"SLURM did not say whether it requeues the job: {answer}; {remedy}"
            say(f"SLURM was asked to requeue the job: {answer}: asking again")
            time.sleep(CONTROLLER_PAUSE_SECONDS)
        return ""

    def requeue(self) -> str:
        """Have SLURM end this job and start it again later; return why it did not, else ""."""
        return slurm.requeue(self.job, os.environ)

"""What `data.prepare.engines.on_ray` uses of the package `ray`, in this process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

HEAD = "10.0.0.1:6379"


class RayError(Exception):
    """The base of Ray's errors."""


class RayTaskError(RayError):
    """A task has raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Reference:
    """The outcome of a task, once there is one."""

    is_finished: bool
    error: Exception | None = None


class FakeRay:
    """Takes the place of the module. A task is done when it is handed out.

    cores: of the cluster.
    outcome: task → the outcome of an attempt in place of its own work: an error, or a finished reference.

    Attributes: `looked_at`, references that all waits have looked at; `cancelled`, how many were.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, cores: int, outcome: Callable[[Any], Reference] | None = None) -> None:
        self._cores, self._outcome = cores, outcome
        self.looked_at = self.cancelled = 0

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **_: object) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(remote=lambda *given: self._begun(function, *given))

    def _begun(self, function: Any, common: Any, task: Any) -> Reference:
        if self._outcome is not None:
            return self._outcome(task)
        try:
            function(common, task)
        except Exception as error:
            return Reference(True, RayTaskError(error))
        return Reference(True)

    def wait(
        self, references: Sequence[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        self.looked_at += len(references)
        finished = [reference for reference in references if reference.is_finished][:num_returns]
        return finished, [reference for reference in references if reference not in finished]

    def get(self, reference: Reference) -> None:
        if reference.error is not None:
            raise reference.error

    def cancel(self, reference: Reference, *, force: bool) -> None:
        self.cancelled += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self._cores)}

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=HEAD)

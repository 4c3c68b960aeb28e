"""Which of the ranks that hold the same bytes counts them in the gradient norm, and which saves them."""

from collections.abc import Iterable
from heapq import heapreplace

from parallel.layout.mesh import Mesh
from parallel.parameters.sharded_parameter import ShardedParameter


def counts_in_norm(parameter: ShardedParameter, mesh: Mesh) -> bool:
    """Whether this rank is the one that adds the parameter's gradient to the global norm."""
    first_of_tp = parameter.tp_dim is not None or mesh.tp.rank == 0
    return not parameter.duplicate and mesh.replicate.rank == 0 and first_of_tp


def assign_owners(parameters: Iterable[ShardedParameter], mesh: Mesh) -> None:
    """Set `owned` on one of the ranks that hold the same bytes, for every parameter; spread bytes evenly.

    Every rank of such a set computes the same answer without a message: the load depends on sizes alone.
    """
    # For each tp rank a heap of (elements, replica): the first has the fewest, and of those the lowest rank.
    loads = [[(0, replica) for replica in range(mesh.replicate.size)] for _ in range(mesh.tp.size)]
    for parameter in sorted(parameters, key=lambda one: (-one.tensor.numel(), one.name)):
        if parameter.duplicate:
            continue
        if parameter.tp_dim is None:
            owning = [min(range(mesh.tp.size), key=lambda tp: loads[tp][0][0])]
        else:  # tp ranks hold different bytes of the same size: one owner in each
            owning = list(range(mesh.tp.size))
        parameter.owned = False
        for tp in owning:
            load, replica = loads[tp][0]
            heapreplace(loads[tp], (load + parameter.tensor.numel(), replica))
            parameter.owned |= (tp, replica) == (mesh.tp.rank, mesh.replicate.rank)

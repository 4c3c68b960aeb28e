"""Which of the ranks that hold the same bytes counts them in the gradient norm, and which saves them."""

from collections.abc import Iterable

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
    loads = [[0] * mesh.replicate.size for _ in range(mesh.tp.size)]
    for parameter in sorted(parameters, key=lambda one: (-one.tensor.numel(), one.name)):
        if parameter.duplicate:
            continue
        size = parameter.tensor.numel()
        if parameter.tp_dim is None:
            tp, replica = min(
                ((t, r) for t in range(mesh.tp.size) for r in range(mesh.replicate.size)),
                key=lambda at: (loads[at[0]][at[1]], at),
            )
            loads[tp][replica] += size
            parameter.owned = (tp, replica) == (mesh.tp.rank, mesh.replicate.rank)
        else:  # tp ranks hold different bytes of the same size: one owner in each
            for tp, load in enumerate(loads):
                replica = load.index(min(load))
                load[replica] += size
                if tp == mesh.tp.rank:
                    parameter.owned = replica == mesh.replicate.rank

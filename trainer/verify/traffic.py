"""`germinal verify --comms`: what one step of this layout sends, by mesh axis, next to what it should."""

import re
from typing import Any

from common.precision import ELEMENT_BYTES
from parallel.engine import Engine
from parallel.layout.layout import Layout
from parallel.messages.comms import CommCounter, context_bytes, data_bytes, pipeline_bytes, tensor_bytes
from trainer.config.run_config import RunConfig

_BLOCK = re.compile(r"model\.\w+\.\d+\.")  # the prefix of a block's parameters


def counter(engine: Engine) -> CommCounter:
    """A context manager that counts what is sent; the engine says which group belongs to which axis."""
    return CommCounter(engine.axes)


def rows(
    found: CommCounter, engine: Engine, cfg: RunConfig, layout: Layout, rank: int
) -> list[dict[str, Any]]:
    """Return a row for each (axis, kind), with the calls and bytes that this rank sent in the step; and a row
    for each axis that has a formula, with the bytes that were sent and those of the formula.

    The formulas are `parallel.messages.comms`'s: ZeRO's over the data axes (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 7), sequence-parallel tensor parallelism's (Korthikanti et al. 2022,
    arXiv:2205.05198), Ulysses's context parallelism (Jacobs et al. 2023, arXiv:2309.14509), and a hidden
    state a boundary and micro-batch for pipelines.
    """
    table: list[dict[str, Any]] = [
        {"axis": axis, "kind": kind, "calls": sent.calls, "sent_bytes": round(sent.sent_bytes)}
        for (axis, kind), sent in sorted(found.traffic.items())
    ]
    for axis, formula in formulas(engine, cfg, layout, rank).items():
        axes = ("dp_replicate", "dp_shard") if axis == "data" else (axis,)
        total = sum(found.of(name).sent_bytes for name in axes)
        table.append(
            {"axis": axis, "kind": "all", "sent_bytes": round(total), "formula_bytes": round(formula)}
        )
    return table


def formulas(engine: Engine, cfg: RunConfig, layout: Layout, rank: int) -> dict[str, float]:
    """Return axis → bytes that `rank` sends in one step, for the axes whose formula holds on this layout."""
    if cfg.parallel.engine != "torch" or "embedding" in cfg.objective.needs:  # two forwards a micro-batch
        return {}
    if cfg.finetune.freezes:  # frozen parameters are gathered, and their gradients are not sent
        return {}
    micro_batches = layout.micro_batches(cfg.train.global_batch, cfg.train.micro_batch)
    element_bytes = ELEMENT_BYTES[cfg.train.precision]
    each: dict[str, Any] = {"micro_batches": micro_batches, "element_bytes": element_bytes}
    held = [chunk for chunk in engine.chunks() if chunk.name.startswith("model.")]
    blocks = len({match[0] for chunk in held if (match := _BLOCK.match(chunk.name))})
    stages = layout.stages_of(layout.place_of(rank).pp)
    hidden_states = cfg.train.micro_batch * cfg.model.hidden_elements(cfg.row_length) // layout.cp
    wanted: dict[str, float] = {}
    if layout.dp * layout.cp > 1:
        wanted["data"] = _data(
            sum(chunk.tensor.numel() for chunk in held), layout, micro_batches, element_bytes
        )
    if layout.pp > 1:
        neighbours = [(stage, other) for stage in stages for other in (stage - 1, stage + 1)]
        sends = sum(0 <= other < layout.stages and other not in stages for _, other in neighbours)
        wanted["pp"] = pipeline_bytes(hidden_states // layout.tp, sends=sends, **each)
    if cfg.parallel.recompute != "none":  # blocks that are computed again send again
        return wanted
    if len(cfg.model.plan().towers) > 1:  # whose blocks differ in size
        return wanted
    if layout.tp > 1:
        ends = (0 in stages) + (layout.stages - 1 in stages)
        wanted["tp"] = tensor_bytes(hidden_states, ranks=layout.tp, blocks=blocks, ends=ends, **each)
    if layout.cp > 1:
        attention = cfg.train.micro_batch * cfg.model.attention_elements(cfg.row_length)
        swapped = attention // (layout.cp * layout.tp)
        wanted["cp"] = context_bytes(swapped, ranks=layout.cp, blocks=blocks, **each)
    return wanted


def _data(held: int, layout: Layout, micro_batches: int, parameter_bytes: int) -> float:
    """Return the bytes over both data axes. held: number of parameters on this rank."""
    ranks = layout.dp * layout.cp
    if layout.zero == 0:
        return data_bytes(held, ranks=ranks, zero=0, micro_batches=micro_batches)
    shards = layout.dp_shard * layout.cp
    over_shards = data_bytes(
        held * shards,
        ranks=shards,
        zero=layout.zero,
        micro_batches=micro_batches,
        parameter_bytes=parameter_bytes,
    )
    # Replicas of shards (HSDP) reduce what is left of the gradients, once.
    over_replicas = data_bytes(held, ranks=layout.dp_replicate, zero=0, micro_batches=micro_batches)
    return over_shards + over_replicas

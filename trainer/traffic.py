"""`germinal verify --comms`: what one step of this layout sends, by mesh axis, next to what it should."""

from typing import Any

from parallel.comms import CommCounter, data_bytes, tensor_bytes
from parallel.engine import Engine
from parallel.plan import Layout
from trainer.config import RunConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def counter(engine: Engine) -> CommCounter:
    """Counts while it is entered; the torch engine tells which group is which axis."""
    return CommCounter(getattr(engine, "axes", {}))


def rows(found: CommCounter, engine: Engine, cfg: RunConfig, layout: Layout) -> list[dict[str, Any]]:
    """One a (axis, kind): calls and bytes that this rank sent in the step; and one an axis with a formula.

    The formulas are `parallel.comms`'s: ZeRO's over the data axes (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 7), sequence-parallel tensor parallelism's (Korthikanti et al. 2022,
    arXiv:2205.05198).
    """
    table: list[dict[str, Any]] = [
        {"axis": axis, "kind": kind, "calls": sent.calls, "sent_bytes": round(sent.sent_bytes)}
        for (axis, kind), sent in sorted(found.traffic.items())
    ]
    for axis, formula in formulas(engine, cfg, layout).items():
        axes = ("dp_replicate", "dp_shard") if axis == "data" else (axis,)
        total = sum(found.of(name).sent_bytes for name in axes)
        table.append(
            {"axis": axis, "kind": "all", "sent_bytes": round(total), "formula_bytes": round(formula)}
        )
    return table


def formulas(engine: Engine, cfg: RunConfig, layout: Layout) -> dict[str, float]:
    """Axis → bytes a rank sends in one step, for the axes whose formula holds on this layout."""
    wanted: dict[str, float] = {}
    if cfg.parallel.engine != "torch" or layout.pp > 1:
        return wanted
    element_bytes = BYTES[cfg.train.precision]
    micro_batches = layout.micro_batches(cfg.train.global_batch, cfg.train.micro_batch)
    ranks = layout.dp * layout.cp
    shards = 1 if layout.zero == 0 else layout.dp_shard * layout.cp
    # Replicas of shards (HSDP) reduce what is left of the gradients once more: no formula here.
    if ranks > 1 and shards in (1, ranks):
        held = sum(chunk.tensor.numel() for chunk in engine.chunks() if chunk.name.startswith("model."))
        wanted["data"] = data_bytes(
            held * shards,
            ranks=ranks,
            zero=layout.zero,
            micro_batches=micro_batches,
            parameter_bytes=element_bytes,
        )
    if layout.tp > 1:
        wanted["tp"] = tensor_bytes(
            cfg.train.micro_batch * cfg.data.seq_len // layout.cp * cfg.model.hidden,
            ranks=layout.tp,
            blocks=cfg.model.layers,
            micro_batches=micro_batches,
            element_bytes=element_bytes,
        )
    return wanted

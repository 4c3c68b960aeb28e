"""What a run reads: the `data:` section of a config. Plain dataclasses; imports no torch and no numpy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Source:
    """One corpus in the mixture.

    `path`: a folder that `germinal prepare` made (local, or http(s):// or s3://). `weight`: its share of the
    sequences, relative to the others. `name`: how stages and reports call it; empty: the path.
    `max_epochs`: the source leaves the mixture after this many passes; 0: never.
    """

    path: str = ""
    weight: float = 1.0
    name: str = ""
    max_epochs: float = 0.0


@dataclass
class Heldout:
    """One corpus to evaluate on. `name`: its key in the metrics; empty: the path."""

    path: str = ""
    name: str = ""


@dataclass
class Stage:
    """New weights from a step on. Sources that `weights` (name → weight) leaves out keep theirs."""

    from_step: int = 0
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class DataConfig:
    """The stream of training sequences, and the held-out corpora.

    `seq_len`: inputs (and targets) of a sequence. `packing`: "cut" lays documents end to end and cuts every
    seq_len tokens; "best_fit" packs whole documents and cuts only those longer than a sequence.
    `temperature`: 0 takes the weights as they stand; T > 0 multiplies each by (its tokens)^(1/T): 1 mixes
    by size, a large T evenly. `shuffle_blocks`: how many blocks of documents are shuffled as one.
    `on_corrupt`: "stop" ends the run at a damaged document, "quarantine" masks the sequences that hold it.
    `prefetch`: steps read ahead. `cache_dir`, `cache_bytes`: where remote shards are kept, and at most how
    much; an empty cache_dir reads remote shards by range, without a cache.
    """

    sources: list[Source] = field(default_factory=list)
    heldout: list[Heldout] = field(default_factory=list)
    seq_len: int = 256
    document_mask: bool = False
    ledger: bool = False
    packing: str = "cut"
    stages: list[Stage] = field(default_factory=list)
    temperature: float = 0.0
    shuffle_blocks: int = 64
    on_corrupt: str = "stop"
    prefetch: int = 4
    cache_dir: str = ""
    cache_bytes: int = 100_000_000_000


def check(cfg: DataConfig) -> None:
    """Raises ValueError, one line naming the key and the value, where the section contradicts itself."""
    if not cfg.sources:
        raise ValueError("data.sources is empty; name at least one corpus: data.sources=[{path: …}]")
    if cfg.seq_len < 1:
        raise ValueError(f"data.seq_len must be at least 1, not {cfg.seq_len}")
    if cfg.packing not in ("cut", "best_fit"):
        raise ValueError(f"data.packing must be cut or best_fit, not {cfg.packing!r}")
    if cfg.on_corrupt not in ("stop", "quarantine"):
        raise ValueError(f"data.on_corrupt must be stop or quarantine, not {cfg.on_corrupt!r}")
    if cfg.temperature < 0:
        raise ValueError(f"data.temperature must be 0 (weights as they stand) or more, not {cfg.temperature}")
    for key, value in (
        ("shuffle_blocks", cfg.shuffle_blocks),
        ("prefetch", cfg.prefetch),
        ("cache_bytes", cfg.cache_bytes),
    ):
        if value < 1:
            raise ValueError(f"data.{key} must be at least 1, not {value}")
    for i, source in enumerate(cfg.sources):
        if not source.path:
            raise ValueError(f"data.sources[{i}].path is empty; give the folder that `germinal prepare` made")
        if not 0 <= source.weight < float("inf"):
            raise ValueError(f"data.sources[{i}].weight must be a finite number ≥ 0, not {source.weight}")
        if source.max_epochs < 0:
            raise ValueError(f"data.sources[{i}].max_epochs must be ≥ 0, not {source.max_epochs}")
    for i, heldout in enumerate(cfg.heldout):
        if not heldout.path:
            raise ValueError(f"data.heldout[{i}].path is empty; give the folder that `germinal prepare` made")
    names = [source.name or source.path for source in cfg.sources]
    sets = [heldout.name or heldout.path for heldout in cfg.heldout]
    for key, what, called in (("sources", "sources", names), ("heldout", "sets", sets)):
        for name in called:
            if called.count(name) > 1:
                raise ValueError(f"data.{key} has two {what} called {name!r}; give each its own name")
    for i, stage in enumerate(cfg.stages):
        if (i and stage.from_step <= cfg.stages[i - 1].from_step) or stage.from_step < 0:
            raise ValueError(
                f"data.stages[{i}].from_step={stage.from_step} does not come after the stage before"
            )
        for name, weight in stage.weights.items():
            if name not in names:
                raise ValueError(f"data.stages[{i}].weights: no source is called {name!r}; there are {names}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"data.stages[{i}].weights.{name} must be a finite number ≥ 0, not {weight}")

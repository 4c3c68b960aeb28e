"""A run apart from its tensors: how far it has come, and what it must share with its checkpoints."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """How far a run has come. Totals over the whole run, not since the last start.

    step: optimiser steps done, those without an update included.
    sequences: the whole position in the stream (law 2): the global number of the next sequence to read.
    tokens: targets predicted.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0

    def advance(self, *, sequences: int, tokens: int) -> None:
        """Count one more step, which read so many sequences and predicted so many tokens."""
        self.step += 1
        self.sequences += sequences
        self.tokens += tokens

    def move_to(self, other: "TrainState") -> None:
        """Become equal to `other`, for all that hold this object."""
        self.step, self.sequences, self.tokens = other.step, other.sequences, other.tokens

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        return cls(int(values["step"]), int(values["sequences"]), int(values["tokens"]))


# Keys without which a checkpoint's state or the stream would be another: changed, they are refused by name.
FIXED = (
    *("data.seq_len", "data.packing", "data.partners", "data.document_mask"),
    *("data.image_size", "data.image_views", "data.augment"),
    *("optim.name", "optim.state_dtype", "objective.kind"),
    *(f"finetune.{key}" for key in ("method", "rank", "alpha", "targets", "bottleneck")),
)

# Keys that decide which sequences come when.
STREAM = ("data.sources", "data.stages", "data.temperature", "data.shuffle_blocks")


@dataclass(frozen=True)
class Identity:
    """What makes two runs the same run. A checkpoint of another run is refused, with the field that differs.

    data: the stream's fingerprint.
    seed: of the first weights and the order of the data.
    model: the resolved model config as plain JSON.
    settings: what else shapes the loss curve, dotted key → value. Only `FIXED` may not change: a run may go
        on with another learning rate or number of steps, and the resume reports it.
    tokenizer: "sha256" of its file, "eos", and whether the corpora have its "template"; for readers of the
        checkpoint that have no corpus. A resume need not compare it, for `data` covers it.
    software: versions of torch and of the code; they may change, and the resume reports it.
    classes: names of the model's classes, by their numbers, as far as the corpora state them; for readers of
        the checkpoint too.
    base: hash of the weights that frozen parameters are read from, and where they are; empty where none is
        frozen.

    model_defaults: the defaults of the model's keys, for checkpoints that are older than a key. Not saved.

    All are kept whole, so that an error can name the key that changed.
    """

    data: str = ""
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    base: dict[str, str] = field(default_factory=dict)
    model_defaults: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "model_defaults"}

    def check(self, saved: dict[str, Any], where: str) -> None:
        """Refuse a checkpoint of another run: `saved` is the identity in the checkpoint `where`.

        ValueError where the config describes another model, seed or state, RuntimeError where the corpus is
        another.
        """
        model = _as_json(self.model)
        before = _as_json(self.model_defaults) | saved["model"]
        for key in sorted(model.keys() | saved["model"].keys()):
            _same(f"model.{key}", model.get(key), before.get(key), where)
        _same("seed", self.seed, saved["seed"], where)
        for key, (now, then) in self._changed(saved).items():
            if key in FIXED:
                _same(key, now, then, where)
        self.check_base(saved, where)
        if self.data != saved["data"]:
            asked = [
                f"{leaf} is {now!r}, it was {then!r}"
                for key, pair in self._changed(saved).items()
                if key in STREAM
                for leaf, now, then in _leaves(key, *pair)
            ]
            what = ", ".join(asked) or f"the stream's fingerprint is {self.data}, it was {saved['data']}"
            restore = "set it back" if asked else "restore the corpus"
            raise RuntimeError(
                f"corpus changed since checkpoint {where}: {what}: {restore}, or give the run another name"
            )

    def check_base(self, saved: dict[str, Any], where: str) -> None:
        """RuntimeError where the frozen weights are not those that the checkpoint's were trained beside."""
        before = saved.get("base") or {}
        if self.base.get("hash") != before.get("hash"):
            raise RuntimeError(
                f"model.init_from={self.base.get('where')}: its weights have the hash "
                f"{self.base.get('hash')}, but {where} was trained beside frozen weights of the hash "
                f"{before.get('hash')}: restore {before.get('where')}"
            )

    def check_stages(self, state: TrainState, saved: dict[str, Any], where: str) -> None:
        """ValueError where the config has mixture stages, which begin at a step, and the steps up to `state`
        had another global batch: the config then does not determine the sequence that a stage begins with.
        """
        stages, batch = self.settings.get("data.stages"), self.settings.get("train.global_batch", 0)
        if not stages or state.sequences == state.step * batch:
            return
        then = saved.get("settings", {}).get("train.global_batch", 0)
        remedy = f"set it back to {then}" if state.sequences == state.step * then else "leave data.stages out"
        steps = ", ".join(str(stage["from_step"]) for stage in stages)
        raise ValueError(
            f"train.global_batch is {batch}, but the {state.step} steps up to {where} read {state.sequences} "
            f"sequences: data.stages (from_step {steps}) need one global batch for the whole run: {remedy}, "
            "or give the run another name"
        )

    def changes(self, saved: dict[str, Any]) -> list[str]:
        """List `optim.lr 0.001 → 0.002` for each setting and version that differs from a checkpoint's."""
        return [
            f"{leaf} {_text(before)} → {_text(after)}"
            for key, (now, then) in self._changed(saved).items()
            for leaf, after, before in _leaves(key, now, then)
        ]

    def _changed(self, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Key → (now, then). What a checkpoint does not keep, settings or versions, is not compared."""
        before = {**saved.get("settings", {}), **saved.get("software", {})}
        now = _as_json(self.settings | self.software)
        return {key: (now[key], before[key]) for key in now if key in before and now[key] != before[key]}


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]  # tuples come back as lists


def _same(key: str, now: Any, then: Any, where: str) -> None:
    for leaf, new, old in _leaves(key, now, then):
        raise ValueError(
            f"{leaf} is {new!r}, but {where} was saved with {old!r}: set it back, or give the run another"
            " name"
        )


def _leaves(key: str, now: Any, then: Any) -> list[tuple[str, Any, Any]]:
    """(`data.sources[0].path`, now, then) of each value inside `now` that differs from `then`."""
    if now == then:
        return []
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        pairs = [(f"{key}[{i}]", a, b) for i, (a, b) in enumerate(zip(now, then))]
    elif isinstance(now, dict) and isinstance(then, dict) and now.keys() == then.keys():
        pairs = [(f"{key}.{name}", now[name], then[name]) for name in now]
    else:
        return [(key, now, then)]
    return [leaf for pair in pairs for leaf in _leaves(*pair)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""Every way to run one model on up to eight processes, as plan and config offer it, against one process.

A combination is one value for each of FACTORS. What `resolve` and its checks refuse is refused here with
their words; a setting that does nothing in a combination (a schedule without a pipeline) is held at one
value, so that no run is done twice. `bench/parity.py` runs them all,
`equivalence/test_parity.py` a covering part.
"""

import functools
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from common.precision import Precision
from data.config import DataConfig, Source
from parallel.config import Engine, ParallelConfig
from parallel.deepspeed_engine.settings import check as check_deepspeed
from parallel.layout.layout import SCHEDULES, check_batch, check_stages, resolve
from runs import SEQ, VOCAB, Case, curve, reference
from trainer.config import keys
from trainer.config.run_config import RunConfig
from trainer.config.sections import TrainConfig
from trainer.models.decoder.config import DecoderConfig

LARGEST_WORLD = 8
GLOBAL_BATCH = 16  # a sequence or more in each micro-batch of every layout of eight
AXES = ("dp_replicate", "dp_shard", "cp", "tp", "pp")
SIZES = (1, 2, 4, 8)
NO_PIPELINE = "1f1b"  # the schedule's value where there is none

# Values by name; the first is the plainest. nvme needs an operator that is compiled for minutes: not here.
FACTORS: dict[str, tuple[Any, ...]] = {
    "engine": get_args(Engine),
    "zero": (0, 1, 2, 3),
    **dict.fromkeys(AXES, SIZES),
    "schedule": tuple(SCHEDULES),
    "precision": get_args(Precision),
    "recompute": ("none", "full", "selective", "every:2"),
    "offload": ("none", "optimizer", "optimizer+parameters", "parameters"),
}
# What a result could depend on most; sizes of the data axes and offloading multiply it.
NAMED = ("engine", "zero", "tp", "pp", "schedule", "cp", "precision", "recompute")
# What the subset in the test varies besides. It is no layout, but what layouts have to carry.
MODEL_FACTORS: dict[str, tuple[Any, ...]] = {"tied": (False, True), "documents": (False, True)}

# Largest relative difference of any step's loss or gradient norm from one process in fp32, over 20 steps.
# fp32: sums in another order, 6e-8 each, grown by 20 steps of training. bf16 keeps 8 bits, so a weight is off
# by 2^-9 = 2e-3 and an activation again at each of some twenty operators a block: a norm over all gradients,
# whose roundings are independent, comes out within a few 1e-3, and tensor parallelism rounds partial sums
# besides. fp16 keeps 11 bits: an eighth of that, and a loss scale that is a power of two rounds nothing.
BOUNDS = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}


@dataclass(frozen=True)
class Combination:
    """One value for each factor."""

    engine: str = "torch"
    zero: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    schedule: str = NO_PIPELINE
    precision: str = "fp32"
    recompute: str = "none"
    offload: str = "none"
    tied: bool = False
    documents: bool = False

    @property
    def world(self) -> int:
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def named(self) -> tuple[Any, ...]:
        """Its values of NAMED."""
        return tuple(getattr(self, name) for name in NAMED)

    @property
    def micro_batches(self) -> int:
        """Of a data rank in a step: enough to accumulate, to fill the pipeline and to suit its schedule, and
        up to four processes to see a pipeline run full for a while.
        """
        if self.pp == 1 or self.schedule == "dualpipe_v":
            return 2 * self.pp
        return max(4 if self.world <= 4 else 2, self.pp)

    @property
    def parallel(self) -> dict[str, Any]:
        chosen = {name: getattr(self, name) for name in ("engine", "zero", *AXES, "schedule", "recompute")}
        for kind in self.offload.split("+"):
            if kind != "none":
                chosen[f"offload_{kind}"] = "cpu"
        return chosen

    @property
    def moot(self) -> bool:
        """Whether it is the same run as another combination, which says it more plainly."""
        unsplit = (
            self.engine == "torch"
            and self.precision == "fp32"
            and self.dp_replicate * self.dp_shard * self.cp == 1
        )
        return (
            (self.pp == 1 and self.schedule != NO_PIPELINE)
            or (unsplit and self.zero != 1)
            or (self.engine == "torch" and self.offload != "none")
        )

    def case(self, steps: int = 20) -> Case:
        """A model as small as the layout lets it be: eight heads in four groups, a layer a stage.

        Deep ones at a third of the rate. At the rate of the others the gradient of 16 layers grows within ten
        steps, and what half precision rounds with it: 3e-4 in the first step became 1e-2 on one process too.
        """
        stages = self.pp * (SCHEDULES[self.schedule].stages_per_rank if self.pp > 1 else 1)
        model = {"layers": max(2, stages), "heads": 8, "kv_heads": max(4, self.cp * self.tp)}
        model |= {"hidden": 32, "ffn_hidden": 48, "tie_embeddings": self.tied}
        dp = self.dp_replicate * self.dp_shard
        return Case(
            lr=3e-3 if stages <= 4 else 1e-3,
            parallel=self.parallel,
            model=model,
            precision=self.precision,
            global_batch=GLOBAL_BATCH,
            micro_batch=GLOBAL_BATCH // (dp * self.micro_batches),
            steps=steps,
            documents=self.documents,
        )

    def refusal(self) -> str:
        """Why it is not offered; "" where it is."""
        if refused := _refused_keys(tuple(self.parallel.items()), self.precision):
            return refused
        case, cfg = self.case(), ParallelConfig(**self.parallel)
        model = DecoderConfig(**case.model, vocab=VOCAB)
        try:
            layout = resolve(cfg, self.world)
            model.check_layout(tp=layout.tp, cp=layout.cp)
            check_stages(layout, blocks=model.layers, key="model.layers", cut="even")
            check_batch(layout, global_batch=GLOBAL_BATCH, micro_batch=case.micro_batch, positions=SEQ)
        except ValueError as error:
            return str(error)
        return ""

    def __str__(self) -> str:
        """What differs from one process in fp32."""
        plain = Combination()
        chosen = {name: getattr(self, name) for name in self.__dataclass_fields__}
        said = {name: value for name, value in chosen.items() if value != getattr(plain, name)}
        return " ".join(f"{name}={value}" for name, value in said.items()) or "one process"


@functools.cache
def _refused_keys(parallel: tuple[tuple[str, Any], ...], precision: str) -> str:
    """Why the keys themselves are refused: thousands of combinations have the same ones."""
    cfg = ParallelConfig(**dict(parallel))
    train = TrainConfig(precision=precision)  # type: ignore[arg-type]
    try:
        keys.check(RunConfig("run", DecoderConfig(), DataConfig([Source("x")]), train=train, parallel=cfg))
        if cfg.engine == "deepspeed":
            _check_deepspeed()
    except ValueError as error:
        return str(error)
    return ""


@functools.cache
def _check_deepspeed() -> None:
    """Its packages: it looks for them on the disk, and no combination offloads to one."""
    check_deepspeed(ParallelConfig(engine="deepspeed"))


def combinations(model_factors: bool = False, largest: int = LARGEST_WORLD) -> Iterator[Combination]:
    """Every combination that fits `largest` processes and says something of its own, refused or not."""
    factors = FACTORS | (MODEL_FACTORS if model_factors else {})
    sizes = [s for s in itertools.product(SIZES, repeat=len(AXES)) if math.prod(s) <= largest]
    others = [name for name in factors if name not in AXES]
    for axes in sizes:
        base = Combination(**dict(zip(AXES, axes)))
        for values in itertools.product(*(factors[name] for name in others)):
            one = replace(base, **dict(zip(others, values)))
            if not one.moot:
                yield one


def groups_of(one: Combination, size: int = 2) -> set[tuple[tuple[str, Any], ...]]:
    """Every `size` settings that a combination brings together."""
    return set(itertools.combinations(vars(one).items(), size))


def covering(offered: Sequence[Combination], seed: int = 0, tries: int = 40) -> list[Combination]:
    """A small part of the combinations in which every pair of settings that occurs at all occurs.

    Greedy: the next is the best of some that hold a pair which is still missing (Cohen et al. 1997, AETG).
    """
    draw = random.Random(seed)
    having: dict[Any, list[Combination]] = {}
    for one in offered:
        for pair in groups_of(one):
            having.setdefault(pair, []).append(one)
    missing = set(having)
    order = sorted(missing, key=lambda pair: (len(having[pair]), repr(pair)))  # what is rare first
    chosen: list[Combination] = []
    for pair in order:
        if pair not in missing:
            continue
        candidates = draw.sample(having[pair], min(tries, len(having[pair])))
        best = max(candidates, key=lambda one: (len(groups_of(one) & missing), -one.world))
        chosen.append(best)
        missing -= groups_of(best)
    return chosen


@dataclass(frozen=True)
class Difference:
    """The largest relative difference of any step from one process in fp32."""

    loss: float
    grad_norm: float

    @property
    def worst(self) -> float:
        return max(self.loss, self.grad_norm)


def compare(ranks: Any, one: Combination, steps: int = 20) -> Difference:
    """Run a combination on a pool. AssertionError unless all ranks report one curve."""
    case = one.case(steps)
    curves = ranks(one.world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:]), "ranks report different curves"
    assert len(curves[0]) == steps
    return difference(curves[0], reference(case))


def difference(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> Difference:
    """Of two curves. What is not finite is infinitely far."""
    assert len(found) == len(expected)

    def largest(column: int) -> float:
        relative = (abs(f[column] - e[column]) / abs(e[column]) for f, e in zip(found, expected))
        return max(x if math.isfinite(x) else math.inf for x in relative)

    return Difference(largest(0), largest(1))

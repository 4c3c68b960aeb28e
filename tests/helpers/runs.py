"""Tiny runs of the real models on any layout, and the batches they see."""

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from common.objective import Objective
from parallel.build import build_engine
from parallel.config import ParallelConfig
from parallel.engine import Chunk, Engine
from parallel.layout.layout import resolve
from parallel.world.runtime import Runtime
from trainer.config.sections import OptimConfig
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.registry import MODELS
from trainer.models.tuned.config import FinetuneConfig
from trainer.models.tuned.plan import tuned_plan
from trainer.objectives.build import build_objective
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.registry import OBJECTIVES
from trainer.optim.build import build_optimizer
from trainer.verify.deviation import distance_and_scale, kind_of
from trainer.verify.limits import floor

VOCAB = 128
SEQ = 32


@dataclass(frozen=True)
class Batch:
    """A micro-batch as the loader makes them."""

    tensors: dict[str, Tensor]
    sequences: tuple[int, ...]

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        return Batch({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.sequences)


@dataclass(frozen=True)
class Case:
    """One run of a tiny model."""

    parallel: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    global_batch: int = 8
    micro_batch: int = 1
    steps: int = 20
    clip: float = 1.0
    lr: float = 3e-3
    documents: bool = False
    seed: int = 1
    optimizer: str = "adamw"
    state_dtype: str = "fp32"
    sources: int = 0  # number of them; sequence n is of source n % sources
    objective: dict[str, Any] = field(default_factory=dict)
    partners: bool = False  # a document a row, and another one beside it
    finetune: dict[str, Any] = field(default_factory=dict)


def sequence(number: int, documents: bool) -> dict[str, Tensor]:
    """Global sequence `number`: noisy counting, so that it can be learnt; what follows is masked unevenly."""
    draw = torch.Generator().manual_seed(7919 * number + 1)
    start = int(torch.randint(VOCAB, (1,), generator=draw))
    tokens = (start + 3 * torch.arange(SEQ + 1)) % VOCAB
    noise = torch.randint(VOCAB, (SEQ + 1,), generator=draw)
    tokens = torch.where(torch.rand(SEQ + 1, generator=draw) < 0.2, noise, tokens)
    following = tokens[1:].clone()
    following[int(SEQ * (0.05 + 0.95 * torch.rand(1, generator=draw) ** 2)) :] = -1
    row = {"tokens": tokens[:-1], "following": following}
    if documents:
        starts = torch.rand(SEQ, generator=draw) < 0.15
        row["documents"] = starts.cumsum(0)
        last = torch.where(starts, torch.arange(SEQ), 0).cummax(0).values
        row["positions"] = torch.arange(SEQ) - last
    return row


def row(number: int, case: Case) -> dict[str, Tensor]:
    """What the stream gives of one sequence."""
    found = sequence(number, case.documents)
    if case.partners:
        other = sequence(number + 100_000, False)
        found |= {"partner": other["tokens"], "partner_following": other["following"]}
    return found


def marks(number: int, following: Tensor) -> dict[str, Tensor]:
    """Marks 0 to 4, a question and a context with an answer, of a row of one document."""
    length = int((following >= 0).sum())
    place = torch.arange(SEQ)
    first, last = length // 2, min(length - 1, length // 2 + number % 3)
    found = torch.where((place > 1) & (place < length), 1, 0)
    found[last], found[first] = 3, 2 if last > first else 4
    behind = torch.where(place < length - 1, found.roll(-1), 0)
    return {"marks": found, "following_marks": behind}


def micro_batches(case: Case, step: int, rank: int, ranks: int) -> list[Batch]:
    """What data rank `rank` reads in a step: its rows of the global batch, in micro-batches."""
    rows = case.global_batch // ranks
    first = step * case.global_batch + rank * rows
    batches = []
    for start in range(first, first + rows, case.micro_batch):
        numbers = range(start, start + case.micro_batch)
        read = [row(number, case) for number in numbers]
        tensors = {k: torch.stack([row[k] for row in read]) for k in read[0]}
        if case.sources:
            tensors["source"] = torch.tensor(numbers) % case.sources
        batches.append(Batch(tensors, tuple(numbers)))
    return batches


def model_of(case: Case) -> ModelConfig:
    """The config of the case's model; a decoder unless it says another `kind`."""
    sizes: dict[str, Any] = {"layers": 4, "hidden": 32, "heads": 4, "ffn_hidden": 48, "vocab": VOCAB}
    kind = case.model.get("kind", "decoder")
    if kind == "decoder":
        sizes |= {"kv_heads": 2, "qk_norm": True}
    return MODELS[kind](**(sizes | case.model))


def objective_config_of(case: Case) -> ObjectiveConfig:
    return OBJECTIVES[case.objective.get("kind", "causal_lm")](**case.objective)


def objective_of(case: Case) -> Objective:
    cfg, model = objective_config_of(case), model_of(case)
    context = ObjectiveContext(case.seed, SEQ, VOCAB, 0, lambda: b"", model)
    assert not (wrong := context.too_small(model.vocab, cfg)), wrong
    return build_objective(cfg, context)


def build(case: Case, rank: int, world: int) -> Engine:
    cfg = ParallelConfig(**case.parallel)
    model, objective = model_of(case), objective_config_of(case)
    finetune = FinetuneConfig(**case.finetune)
    plan = tuned_plan(model.plan(), finetune)
    optim = OptimConfig(name=case.optimizer, state_dtype=case.state_dtype)  # type: ignore[arg-type]
    return build_engine(
        layout=resolve(cfg, world),
        runtime=Runtime(rank, world, rank, torch.device("cpu")),
        cfg=cfg,
        plan=plan,
        model_factory=lambda: build_model(model, objective.token_loss(), finetune),
        objective=objective_of(case),
        optimizer_factory=lambda parameters: build_optimizer(parameters, optim, plan),
        precision=case.precision,  # type: ignore[arg-type]
        clip=case.clip,
        seed=case.seed,
        micro_batch=case.micro_batch,
        global_batch=case.global_batch,
        positions=model.positions_of_row(objective.row_length(SEQ)),
        nominal_count=case.global_batch * objective.targets_per_row(SEQ),
        sources=case.sources,
    )


def train(engine: Engine, case: Case, first_step: int = 0) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of every step."""
    curve = []
    for step in range(first_step, first_step + case.steps):
        lr = case.lr * min(1.0, (step + 1) / 5)
        result = engine.step(micro_batches(case, step, engine.data_rank, engine.data_ranks), lr=lr)
        curve.append((result.loss_sum / result.count, result.grad_norm))
    return curve


def curve(context: Any, case: Case) -> list[tuple[float, float]]:
    """Run a case on a pool's rank."""
    engine = build(case, context.rank, context.world)
    try:
        return train(engine, case)
    finally:
        engine.close()


@dataclass(frozen=True)
class Alone:
    """The rank context of a run in this process."""

    rank: int = 0
    world: int = 1


@functools.cache
def _reference(key: str) -> list[tuple[float, float]]:
    return curve(Alone(), _cases[key])


_cases: dict[str, Case] = {}


def reference(case: Case) -> list[tuple[float, float]]:
    """The same run on one process, the bare module in fp32; computed once a session."""
    alone = replace(case, parallel={}, precision="fp32")
    _cases[repr(alone)] = alone
    return _reference(repr(alone))


def distance(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> float:
    """The largest relative difference of any step's loss or gradient norm."""
    assert len(found) == len(expected)
    return max(abs(f - e) / abs(e) for fs, es in zip(found, expected) for f, e in zip(fs, es))


def assert_one_state(
    found: dict[str, Tensor], expected: dict[str, Tensor], first: dict[str, Tensor] | None = None
) -> None:
    """Whole tensors of a layout are those of one process in fp32, within what `germinal verify` allows.

    Moments by their distance, for which see docs/verify.md; with the weights `first` that both began from,
    parameters by their update, where Adam may have turned a few steps around.
    """
    floors = floor("fp32")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        update = kind_of(name) == "model"
        if update and first is None:
            continue
        a, b = found[name].double(), tensor.double()
        if update and first is not None:
            a, b = a - first[name].double(), b - first[name].double()
        off, _ = distance_and_scale(a, b, base=float(b.norm()), update=update)
        assert off <= (floors.update if update else floors.moment), f"{name} is off by {off:.1e}"


@dataclass(frozen=True)
class State:
    """Everything a rank would put into a checkpoint, and what it would read back."""

    chunks: list[Chunk]
    scalars: dict[str, Any]


def state_of(engine: Engine) -> State:
    copies = [replace(chunk, tensor=chunk.tensor.clone()) for chunk in engine.chunks()]
    return State(copies, engine.scalars())


def assemble(states: list[State]) -> dict[str, Tensor]:
    """Whole tensors from the owned pieces of all ranks. Fails unless they tile every tensor exactly once."""
    whole: dict[str, Tensor] = {}
    covered: dict[str, Tensor] = {}
    for state in states:
        for chunk in state.chunks:
            tensor = whole.setdefault(chunk.name, torch.zeros(chunk.shape))
            assert tensor.shape == torch.Size(chunk.shape), chunk.name
            if chunk.owned:
                part(tensor, chunk).copy_(chunk.tensor)
                part(covered.setdefault(chunk.name, torch.zeros(chunk.shape)), chunk).add_(1)
    for name in whole:
        assert bool((covered[name] == 1).all()), f"{name} is not tiled exactly once"
    return whole


def part(whole: Tensor, chunk: Chunk) -> Tensor:
    for dim, (start, length) in enumerate(zip(chunk.offset, chunk.tensor.shape)):
        whole = whole.narrow(dim, start, length)
    return whole


def fill(engine: Engine, whole: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """What resuming does."""
    for chunk in engine.chunks():
        chunk.tensor.copy_(part(whole[chunk.name], chunk))
    engine.load(scalars)

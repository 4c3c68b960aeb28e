"""What tensors hold with LoRA before an update, here and with PEFT, over the closed form."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from data.stream.loader import Loader
from parallel.torch_engine.engine import TorchEngine
from parallel.world.runtime import Runtime
from stock_side import GatedTrainer, stock_model, training_rows
from tensor_memory import live_bytes
from trainer.config import checks, reading
from trainer.ranks import Ranks
from trainer.start.engine import make_engine
from trainer.start.opening import objective_context, open_stream
from tuned_tasks import Setting, write

CPU = torch.device("cpu")


def measure(setting: Setting) -> dict[str, float]:
    """Return the bytes of the closed form, and the most that both held, over it."""
    ours, closed = _ours(setting)
    theirs = _theirs(setting)
    return {"closed_form_bytes": closed, "ours": round(ours / closed, 4), "PEFT": round(theirs / closed, 4)}


def _ours(setting: Setting) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        cfg = reading.load(write(setting, Path(folder)))
    stream = open_stream(cfg, Ranks())
    loader = Loader(stream, rank=0, ranks=1, global_batch=setting.batch, micro_batch=setting.batch)
    batches = [next(loader) for _ in range(2)]
    loader.close()
    before, found = live_bytes(), []
    engine = make_engine(cfg, Runtime(0, 1, 0, CPU), checks.layout(cfg, 1), objective_context(cfg, stream))
    assert isinstance(engine, TorchEngine)
    frozen = sum(chunk.tensor.numel() for chunk in engine.frozen())
    trained = sum(chunk.tensor.numel() for chunk in engine.chunks() if chunk.name.startswith("model."))
    engine.look_at_gradients(
        lambda parameters, _: found.append(live_bytes(one.tensor.grad for one in parameters) - before)
    )
    for one in batches:
        engine.step(one, lr=setting.lr)
    engine.close()
    return max(found), 4 * frozen + 16 * trained


def _theirs(setting: Setting) -> int:
    with tempfile.TemporaryDirectory() as folder:
        cfg = reading.load(write(setting, Path(folder)))
    rows = training_rows(cfg)
    before, found = live_bytes(), []
    model = stock_model(setting)

    def look() -> None:
        found.append(live_bytes(one.grad for one in model.parameters()) - before)

    trainer = GatedTrainer(model, rows, setting, look)
    for number in range(2):
        trainer.step(number)
    trainer.finish()
    return max(found)

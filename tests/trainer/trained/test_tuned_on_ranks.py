"""A run of LoRA or adapters writes texts on several ranks: the logits are those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.world.runtime import Runtime
from trainer.config import reading
from trainer.models.layers.attention import KVCache
from trainer.trained.decoding import open_for_decoding
from trainer.trained.weights import load_model
from whole_runs import make_corpus, newest, train_here, write_config

TUNED = {
    "lora": {"method": "lora", "rank": 4, "alpha": 8.0, "targets": ["all"]},
    "adapters": {"method": "adapters", "bottleneck": 8},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base run in run/."""
    folder = tmp_path_factory.mktemp("base")
    assert train_here(write_config(folder, make_corpus(folder), train__steps=2, train__eval_every=0))
    return folder


def logits(model: Any) -> Tensor:
    """Of a prompt, and then token by token: [1, 12, vocab]."""
    cache, tokens = KVCache(12), torch.arange(40, 52)[None]
    with torch.inference_mode():
        return torch.cat([model(part, cache=cache) for part in tokens.split([4, *[1] * 8], dim=1)], dim=1)


def on_ranks(context: Any, run: Path) -> Tensor:
    runtime = Runtime(context.rank, context.world, context.rank, torch.device("cpu"))
    return logits(open_for_decoding(run, [], runtime).model)


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in TUNED if name != "lora")]
)
def test_what_fine_tuning_added_is_there_on_every_rank(
    ranks: Any, home: Path, tmp_path: Path, method: str
) -> None:
    changes = {"model": {"init_from": str(home / "run")}, "finetune": TUNED[method], "optim__lr": 0.03}
    config = write_config(tmp_path, home / "corpus", **changes, train__steps=4, train__eval_every=0)
    assert train_here(config)
    run = tmp_path / "run"
    expected = logits(load_model(reading.load(run), newest(run), "cpu"))
    base = logits(load_model(reading.load(home / "run"), newest(home / "run"), "cpu"))
    first, second = ranks(2).run(on_ranks, run)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    assert (expected - base).abs().max() > 0.01, "what was added must be seen"

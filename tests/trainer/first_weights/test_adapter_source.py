"""An adapter with our names, as the first branches of a run with another rank or another alpha."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.first_weights.adapter_source import AdapterSource
from trainer.huggingface.adapter import ABOUT, OWN_WEIGHTS, open_adapter
from trainer.models.decoder.config import DecoderConfig
from trainer.models.tuned.config import FinetuneConfig

LAYER = "layers.0.attention.wq.lora"


@pytest.mark.parametrize(("rank", "alpha"), [(2, 6.0), (2, 24.0), (5, 6.0), (5, 1.0)])
def test_branches_compute_what_the_adapter_does(rank: int, alpha: float, tmp_path: Path) -> None:
    a, b = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16.0).view(8, 2)
    save_file({f"{LAYER}.a.weight": a, f"{LAYER}.b.weight": b}, tmp_path / OWN_WEIGHTS)
    settings = {"method": "lora", "rank": 2, "alpha": 6.0, "targets": ["wq"], "bottleneck": 64}
    (tmp_path / ABOUT).write_text(json.dumps({"finetune": settings, "base": {"hash": ""}, "step": 1}))
    model = DecoderConfig(layers=1, hidden=8, heads=2, vocab=16)
    run = FinetuneConfig(method="lora", rank=rank, alpha=alpha, targets=["wq"])
    source = AdapterSource(open_adapter(tmp_path, model), model, run)
    found_a = source.read(f"{LAYER}.a.weight", [0, 0], [rank, 8])
    found_b = source.read(f"{LAYER}.b.weight", [0, 0], [8, rank])
    assert found_a.shape == (rank, 8) and found_b.shape == (8, rank)
    torch.testing.assert_close(found_b @ found_a * run.scale, b @ a * 3.0)


GOOD = {"method": "lora", "rank": 2, "alpha": 6.0, "targets": ["wq"], "bottleneck": 64}


@pytest.mark.parametrize(("about", "message"), [
    (None, r"holds adapter\.safetensors without germinal\.json, which says what it is"),
    ("[1]", r"germinal\.json: not a mapping"),
    ("{", r"germinal\.json: not JSON"),
    ("{}", r"germinal\.json: base and finetune are not mappings"),
    (json.dumps({"finetune": GOOD, "base": "0123"}), r"germinal\.json: base and finetune are not mappings"),
    (json.dumps({"finetune": GOOD | {"rank": 0}}), r"germinal\.json: finetune\.rank=0 is no setting"),
    (json.dumps({"finetune": GOOD | {"rank": "2"}}), r"germinal\.json: finetune\.rank='2' is no setting"),
    (json.dumps({"finetune": GOOD | {"targets": [1]}}), r"germinal\.json: finetune\.targets=\[1\] is no"),
    (json.dumps({"finetune": {"method": "lora"}}), r"germinal\.json: finetune\.rank=None is no setting"),
])  # fmt: skip
def test_an_adapter_that_does_not_say_what_it_is_is_one_line(
    about: str | None, message: str, tmp_path: Path
) -> None:
    save_file({f"{LAYER}.a.weight": torch.zeros(2, 8)}, tmp_path / OWN_WEIGHTS)
    if about is not None:
        (tmp_path / ABOUT).write_text(about)
    with pytest.raises(ValueError, match=rf"^{tmp_path}[^\n]*$") as caught:
        open_adapter(tmp_path, DecoderConfig(layers=1, hidden=8, heads=2, vocab=16))
    assert re.search(message, str(caught.value))

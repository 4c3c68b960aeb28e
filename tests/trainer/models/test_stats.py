"""The torch-free figures against the real modules."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.decoder import sizes as stats
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder

CONFIGS = [
    DecoderConfig(layers=2, hidden=64, heads=4, vocab=96),
    DecoderConfig(layers=3, hidden=96, heads=6, kv_heads=2, ffn_hidden=100, vocab=50, qk_norm=True),
    DecoderConfig(layers=1, hidden=32, heads=2, kv_heads=1, vocab=40, tie_embeddings=True),
]


@pytest.mark.parametrize("cfg", CONFIGS)
def test_parameters_are_those_of_the_module(cfg: DecoderConfig) -> None:
    with torch.device("meta"):
        model = Decoder(cfg)
    assert stats.parameters(cfg) == sum(p.numel() for p in model.parameters())
    parts = stats.parameters_by_part(cfg)
    assert parts.block == sum(p.numel() for p in model.layers["0"].parameters())
    assert model.norm is not None and model.head is not None
    assert parts.head == sum(p.numel() for p in (*model.norm.parameters(), *model.head.parameters()))
    assert sum(stats.state_bytes(cfg).values()) == 16 * stats.parameters(cfg)


@pytest.mark.parametrize("cfg", CONFIGS)
def test_operations_are_those_that_torch_counts_in_a_forward(cfg: DecoderConfig) -> None:
    batch, seq = 2, 32
    with torch.device("meta"):
        model, tokens = Decoder(cfg), torch.zeros(batch, seq, dtype=torch.long)
        # Not causal, so that torch counts every score, as the convention does.
        with FlopCounterMode(display=False) as counter:
            model(tokens, documents=torch.zeros_like(tokens))
    assert counter.get_total_flops() == stats.flops_per_token(cfg, seq) / 3 * batch * seq


def test_published_size() -> None:
    """Llama 2 7B (Touvron et al. 2023): 6,738,415,616 parameters in the released weights."""
    llama = DecoderConfig(layers=32, hidden=4096, heads=32, ffn_hidden=11008, vocab=32000)
    assert stats.parameters(llama) == 6_738_415_616


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, trainer.models.decoder.sizes; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

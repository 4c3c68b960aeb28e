"""What a decoder's config answers, against the real modules; and that it answers without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = [
    DecoderConfig(layers=2, hidden=64, heads=4, vocab=96),
    DecoderConfig(layers=3, hidden=96, heads=6, kv_heads=2, ffn_hidden=100, vocab=50, qk_norm=True),
    DecoderConfig(layers=1, hidden=32, heads=2, kv_heads=1, vocab=40, tie_embeddings=True),
    DecoderConfig(
        layers=2,
        hidden=48,
        heads=4,
        head_dim=20,
        vocab=40,
        norm="layer",
        activation="gelu_tanh",
        attention_bias="all",
        mlp_bias=True,
        positions="learned",
        max_positions=64,
    ),
    DecoderConfig(layers=1, hidden=32, heads=2, vocab=40, attention_bias="qkv", mlp_bias=True),
]


@pytest.mark.parametrize("cfg", CONFIGS)
def test_parameters_are_those_of_the_module(cfg: DecoderConfig) -> None:
    with torch.device("meta"):
        model = Decoder(cfg)
    parts = cfg.parameters()
    assert parts.total == sum(p.numel() for p in model.parameters())
    assert parts.block == sum(p.numel() for p in model.layers["0"].parameters())
    assert model.norm is not None and model.head is not None
    assert parts.last == sum(p.numel() for p in (*model.norm.parameters(), *model.head.parameters()))
    assert cfg.block_counts() == {"model.layers": parts.blocks} == {"model.layers": len(model.layers)}


@pytest.mark.parametrize("cfg", CONFIGS)
def test_operations_are_those_that_torch_counts_in_a_forward(cfg: DecoderConfig) -> None:
    batch, seq = 2, 32
    with torch.device("meta"):
        model, tokens = Decoder(cfg), torch.zeros(batch, seq, dtype=torch.long)
        # Not causal, so that torch counts every score, as the convention does.
        with FlopCounterMode(display=False) as counter:
            model(tokens, documents=torch.zeros_like(tokens))
    assert counter.get_total_flops() == cfg.training_flops(seq).total / 3 * batch


@pytest.mark.parametrize("cfg", CONFIGS)
def test_what_passes_between_blocks_and_around_attention_has_the_modules_sizes(cfg: DecoderConfig) -> None:
    seq, seen = 32, dict[str, int]()
    with torch.device("meta"):
        model = Decoder(cfg)
        core = model.layers["0"].attention.core  # type: ignore[union-attr]
        core.register_forward_hook(  # type: ignore[union-attr,operator]
            lambda _, args, out: seen.update(core=sum(t.numel() for t in (*args[:3], out)))
        )
        model.layers["0"].register_forward_hook(lambda _, args, out: seen.update(block=out.numel()))
        model(torch.zeros(1, seq, dtype=torch.long))
    assert seen == {"core": cfg.attention_elements(seq), "block": cfg.hidden_elements(seq)}


def test_published_size() -> None:
    """Llama 2 7B (Touvron et al. 2023): 6,738,415,616 parameters in the released weights."""
    llama = DecoderConfig(layers=32, hidden=4096, heads=32, ffn_hidden=11008, vocab=32000)
    assert llama.parameters().total == 6_738_415_616


@pytest.mark.parametrize(
    ("parallel", "model", "words"),
    [
        ({"tp": 3}, {}, "model.heads=8 is not divisible by parallel.tp=3"),
        ({"tp": 8}, {}, "model.kv_heads=4 is not divisible by parallel.tp=8"),
        ({"tp": 2}, {"vocab": 255}, "model.vocab=255"),
        ({"tp": 2}, {"ffn_hidden": 101}, "model.ffn_hidden=101 is not divisible by parallel.tp=2"),
        (
            {"tp": 2, "cp": 4},
            {},
            r"model.kv_heads=4 is not divisible by parallel.tp=2 · parallel.cp=4",
        ),
    ],
)
def test_sizes_that_do_not_divide(parallel: dict[str, int], model: dict[str, int], words: str) -> None:
    layout = resolve(ParallelConfig(**parallel), 24)
    sizes = {"layers": 4, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn_hidden": 256, "vocab": 256}
    cfg = DecoderConfig(**{**sizes, **model})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        cfg.check_layout(tp=layout.tp, cp=layout.cp)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from trainer.models.registry import MODELS; MODELS['decoder']().plan();"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_decoder_is_known_to_its_registry_alone() -> None:
    """Whatever the rest of the project wants of a model is in `ModelConfig`. Hugging Face's families, each of
    which describes one model, are left out.
    """
    files = [
        f
        for package in ("common", "data", "launch", "parallel", "trainer")
        for f in (ROOT / package).rglob("*.py")
    ]
    knowing = {
        str(file.relative_to(ROOT))
        for file in files
        if "models.decoder" in file.read_text()
        and not {ROOT / "trainer/models/decoder", ROOT / "trainer/huggingface"} & set(file.parents)
    }
    assert knowing == {"trainer/models/registry.py"}

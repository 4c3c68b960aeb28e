"""A model cut for decoding gives the logits of one process, token by token, the same on every rank."""

from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.config import ParallelConfig
from parallel.layout.layout import resolve
from parallel.layout.mesh import make_mesh
from parallel.torch_engine.parallelize import parallelize_for_decoding
from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig
from trainer.models.layers.attention import KVCache

SIZES: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "ffn_hidden": 48, "vocab": 40}
GPT2: dict[str, Any] = {
    "norm": "layer",
    "activation": "gelu_tanh",
    "attention_bias": "all",
    "mlp_bias": True,
    "positions": "learned",
    "max_positions": 16,
    "tie_embeddings": True,
}
QWEN3: dict[str, Any] = {"kv_heads": 2, "qk_norm": True, "window": 5, "logit_softcap": 2.0}


def tokens() -> Tensor:
    return torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(1))


def whole(cfg: DecoderConfig) -> Any:
    torch.manual_seed(0)
    model = build_model(cfg).double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases are drawn too, or a doubled one would not be seen
            parameter.normal_(0.0, 0.3)
    return model.eval()


def read(model: Any) -> Tensor:
    """Logits [batch, 12, vocab]: a prompt of 4 behind padding, then token by token."""
    cache, padding = KVCache(12), torch.tensor([0, 2, 3])
    with torch.inference_mode():
        parts = tokens().split([4, *[1] * 8], dim=1)
        return torch.cat([model(part, cache=cache, padding=padding) for part in parts], dim=1)


def read_on_ranks(context: Any, changes: dict[str, Any], tp: int) -> Tensor:
    cfg = DecoderConfig(**SIZES, **changes)
    layout = resolve(ParallelConfig(tp=tp, zero=0), context.world)
    mesh = make_mesh(layout, torch.device("cpu"), fsdp=False)
    built = parallelize_for_decoding(cfg.plan(), lambda: build_model(cfg), layout, mesh, torch.device("cpu"))
    model, values = built.stages[0].double(), dict(whole(cfg).named_parameters())
    with torch.no_grad():
        for parameter in built.parameters:
            assert parameter.module_parameter.dtype == torch.float64
            parameter.module_parameter.copy_(parameter.part_of(values[parameter.name]))
    return read(model)


@pytest.mark.parametrize("changes", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
@pytest.mark.parametrize(("world", "tp"), [(2, 2), (4, 2)])
def test_logits_are_those_of_one_process(ranks: Any, changes: dict[str, Any], world: int, tp: int) -> None:
    expected = read(whole(DecoderConfig(**SIZES, **changes)))
    found = ranks(world).run(read_on_ranks, changes, tp)
    for logits in found:
        # Rotary tables are float32 in both.
        assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(logits, found[0]), "the ranks would draw different tokens"

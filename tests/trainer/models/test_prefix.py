"""A decoder with a prefix: which tokens see each other, and logits against Hugging Face's Llama."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from common.objective import IGNORED
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.models.layers.masks import attention_block_mask, attention_mask

PREFIX = torch.tensor([0, 1, 5, 12])
SEQ = 12


def seen(window: int, documents: Tensor | None) -> Tensor:
    """Whether row b's token q attends to its token k, bool [4, SEQ, SEQ], in words."""
    found = torch.zeros(4, SEQ, SEQ, dtype=torch.bool)
    for b in range(4):
        for q in range(SEQ):
            for k in range(SEQ):
                near = not window or abs(q - k) < window
                same = documents is None or documents[b, q] == documents[b, k]
                found[b, q, k] = (k <= q or (q < PREFIX[b] and k < PREFIX[b])) and near and bool(same)
    return found


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("several", [False, True])
def test_tokens_of_the_prefix_see_each_other_and_the_others_those_before_them(
    window: int, several: bool
) -> None:
    documents = (torch.arange(SEQ) // 4).expand(4, -1) if several else None
    expected = seen(window, documents)
    cpu = torch.device("cpu")
    mask = attention_mask(
        SEQ, documents=documents, window=window, prefix=PREFIX, dtype=torch.float32, device=cpu
    )
    assert isinstance(mask, Tensor)
    assert torch.equal(mask[:, 0] == 0, expected)
    q, k, v = (torch.randn(4, 1, SEQ, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    blocks = attention_block_mask(SEQ, documents, window, cpu, prefix=PREFIX)
    by_blocks = flex_attention(q, k, v, block_mask=blocks)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=expected[:, None])
    torch.testing.assert_close(by_blocks, plain)


def test_the_head_computes_the_places_with_targets_alone() -> None:
    model = Decoder(DecoderConfig(layers=1, hidden=16, heads=2, vocab=50)).double()
    tokens = torch.randint(50, (4, SEQ), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[3, 5, -1], [0, 11, 2], [-1, -1, -1], [7, -1, 8]])
    targets = torch.full((4, SEQ), IGNORED)
    for row, mine in enumerate(places.tolist()):
        for place in (place for place in mine if place >= 0):
            targets[row, place] = tokens[row, -place]
    losses = model(tokens, targets=targets, prefix=PREFIX)
    assert losses[2] == 0 and losses[[0, 1, 3]].min() > 0
    torch.testing.assert_close(model(tokens, targets=targets, prefix=PREFIX, places=places), losses)


def test_logits_are_llamas_under_the_same_mask() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = DecoderConfig(layers=2, hidden=32, heads=4, ffn_hidden=48, vocab=50)
    torch.manual_seed(0)
    model = Decoder(cfg).double()
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            rms_norm_eps=cfg.norm_eps,
            attn_implementation="eager",
        )
    ).double()
    names = {
        "model.embed_tokens.weight": "embed.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
    }
    parts = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "mlp.w1",
        "mlp.up_proj": "mlp.w3",
        "mlp.down_proj": "mlp.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
    }
    names |= {
        f"model.layers.{layer}.{their}.weight": f"layers.{layer}.{mine}.weight"
        for layer in range(2)
        for their, mine in parts.items()
    }
    ours = model.state_dict()
    theirs.load_state_dict({their: ours[mine] for their, mine in names.items()})
    tokens = torch.randint(50, (4, SEQ), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(4, 1, SEQ, SEQ, dtype=torch.float64)
    mask.masked_fill_(~seen(0, None)[:, None], torch.finfo(torch.float64).min)
    expected = theirs(tokens, attention_mask=mask).logits
    found = model(tokens, prefix=PREFIX)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (model(tokens)[2] - expected[2]).abs().max() > 1e-3, "without the prefix it is another model"

"""Law 1 for what other families of decoders have: biases, learned positions, windows, soft caps."""

from typing import Any

import pytest
from test_layouts import check, label

from runs import Case

GPT2 = {
    "norm": "layer",
    "activation": "gelu_tanh",
    "attention_bias": "all",
    "mlp_bias": True,
    "positions": "learned",
    "max_positions": 48,
    "qk_norm": False,
    "tie_embeddings": True,
}
MIXED = {
    "head_dim": 10,
    "norm": "layer",
    "activation": "geglu",
    "attention_bias": "all",
    "mlp_bias": True,
    "rope_scaling": "llama3",
    "rope_original_positions": 16,
    "window": 6,
    "global_every": 2,
    "attention_softcap": 3.0,
    "logit_softcap": 2.0,
}


@pytest.mark.parametrize("model", [GPT2, MIXED], ids=["gpt2", "mixed"])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero": 3}),
        (2, {"tp": 2}),
        (2, {"cp": 2}),
        (2, {"pp": 2, "schedule": "zbv_zero_bubble"}),
        (4, {"pp": 2, "tp": 2}),
        *((2, {"engine": "deepspeed", "zero": zero}) for zero in (1, 3)),
    ],
    ids=label,
)
def test_a_family_on_this_layout(
    ranks: Any, world: int, parallel: dict[str, Any], model: dict[str, Any]
) -> None:
    micro = 1 if "pp" in parallel else 2
    documents = "cp" in parallel or parallel == {"tp": 2}
    check(ranks, world, Case(parallel=parallel, model=model, micro_batch=micro, steps=5, documents=documents))

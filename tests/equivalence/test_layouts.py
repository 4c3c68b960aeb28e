"""Law 1: the layout is never visible in the result. Every step, in fp32, against one process."""

from typing import Any

import pytest

from parallel.layout.layout import SCHEDULES
from runs import Alone, Case, curve, distance, reference

TOLERANCE = 1e-5

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    *((2, {"zero": zero}) for zero in (0, 1, 2, 3)),
    (2, {"tp": 2}),
    *(
        (2, {"pp": 2, "schedule": schedule})
        for schedule in ("gpipe", "1f1b", "interleaved_1f1b", "looped_bfs")
    ),
    *(
        (2, {"pp": 2, "schedule": name})
        for name in ("interleaved_zero_bubble", "zbv_zero_bubble", "dualpipe_v")
    ),
    *((4, {"dp_replicate": 2, "dp_shard": 2, "zero": zero}) for zero in (0, 1, 2, 3)),
    *((4, {"tp": 2, "zero": zero}) for zero in (0, 1, 3)),
    (4, {"tp": 2, "pp": 2}),
    *((4, {"pp": 2, "zero": zero}) for zero in (0, 1, 2, 3)),
    (4, {"pp": 2, "zero": 3, "schedule": "interleaved_1f1b"}),
    (4, {"pp": 2, "zero": 3, "schedule": "gpipe"}),
    (4, {"pp": 2, "zero": 2, "schedule": "zbv_zero_bubble"}),
    *((4, {"pp": 2, "zero": 3, "schedule": name}) for name in ("interleaved_zero_bubble", "zbv_zero_bubble")),
    (4, {"pp": 2, "zero": 3, "schedule": "dualpipe_v"}),
    (4, {"pp": 2, "dp_replicate": 2, "zero": 2, "schedule": "zbv_zero_bubble"}),
    (4, {"pp": 2, "dp_replicate": 2, "zero": 2}),
    *((8, {"pp": 2, "tp": 2, "zero": zero}) for zero in (1, 3)),
]
# Each of their pairs of settings is also in another layout or in test_parity.
LIKE_OTHERS: list[tuple[int, dict[str, Any]]] = [
    *((4, {"dp_replicate": 2, "dp_shard": 2, "zero": zero}) for zero in (0, 2)),
    *((4, {"tp": 2, "zero": zero}) for zero in (0, 1)),
    *((4, {"pp": 2, "zero": zero}) for zero in (0, 1, 2)),
    *((4, {"pp": 2, "zero": 2, **more}) for more in ({"schedule": "zbv_zero_bubble"}, {"dp_replicate": 2})),
    *(
        (4, {"pp": 2, "zero": 3, "schedule": name})
        for name in ("gpipe", "interleaved_1f1b", "interleaved_zero_bubble", "dualpipe_v")
    ),
    (8, {"pp": 2, "tp": 2, "zero": 1}),
]
# What families of decoders have: biases, learned positions, windows, soft caps.
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


def label(value: Any) -> str | None:
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None


def check(ranks: Any, world: int, case: Case) -> None:
    """Run the case on a pool; every rank must report the same curve, and it must be the reference's."""
    curves = ranks(world).run(curve, case)
    assert all(other == curves[0] for other in curves[1:])
    assert distance(curves[0], reference(case)) < TOLERANCE


# A schedule that drops gradients shows in the second update; what grows slowly has twenty steps.
@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [pytest.param(*one, marks=[pytest.mark.slow] if one in LIKE_OTHERS else []) for one in LAYOUTS],
    ids=label,
)
def test_layout_leaves_no_trace(ranks: Any, world: int, parallel: dict[str, Any], steps: int) -> None:
    pp = parallel.get("pp", 1)
    dp = world // (parallel.get("tp", 1) * pp)
    micro_batches = 4 if pp > 1 else 2
    # As few blocks as show a fault: what a step costs here is messages, and they come by the block.
    several = SCHEDULES[parallel.get("schedule", "1f1b")].stages_per_rank > 1
    model = {"layers": 4 if several else 2}
    micro_batch = 8 // dp // micro_batches
    check(ranks, world, Case(parallel=parallel, model=model, micro_batch=micro_batch, steps=steps))


@pytest.mark.parametrize("micro_batch", [1, 8, 32])
def test_micro_batch_leaves_no_trace(micro_batch: int) -> None:
    """global_batch=32 as 32 × 1, 4 × 8 and 1 × 32 against 8 × 4."""
    case = Case(global_batch=32, micro_batch=micro_batch, steps=10)
    assert (
        distance(curve(Alone(), case), reference(Case(global_batch=32, micro_batch=4, steps=10))) < TOLERANCE
    )


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero": 3}),
        (2, {"tp": 2}),
        (2, {"pp": 2, "schedule": "zbv_zero_bubble"}),  # first and last stage on one rank
        (4, {"pp": 2, "tp": 2}),
        pytest.param(4, {"pp": 2, "zero": 3}, marks=pytest.mark.slow),
    ],
    ids=label,
)
def test_tied_embeddings(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    micro = 1 if "pp" in parallel else 2
    check(ranks, world, Case(parallel=parallel, model={"tie_embeddings": True}, micro_batch=micro, steps=5))


@pytest.mark.parametrize(("world", "parallel"), [(2, {"zero": 1}), (2, {"tp": 2}), (2, {"pp": 2})], ids=label)
def test_document_masks(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    check(ranks, world, Case(parallel=parallel, documents=True, micro_batch=2, steps=5))


@pytest.mark.parametrize("parallel", [{"zero": 2}, {"zero": 3}, {"tp": 2, "zero": 1}], ids=label)
def test_sizes_that_do_not_divide(ranks: Any, parallel: dict[str, Any]) -> None:
    """Shards of different sizes, some of them empty, and tp halves that are sharded unevenly."""
    sizes = {"hidden": 36, "heads": 6, "kv_heads": 2, "ffn_hidden": 50, "vocab": 130, "layers": 2}
    check(ranks, 4, Case(parallel=parallel, model=sizes, micro_batch=2, steps=5))


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"zero": 3, "recompute": "full"}),
        pytest.param(2, {"tp": 2, "recompute": "selective"}, marks=pytest.mark.slow),
        (2, {"pp": 2, "recompute": "every:2"}),
        pytest.param(
            2, {"pp": 2, "recompute": "full", "schedule": "interleaved_zero_bubble"}, marks=pytest.mark.slow
        ),
        (2, {"pp": 2, "recompute": "selective", "schedule": "zbv_zero_bubble"}),
    ],
    ids=label,
)
def test_recomputation(ranks: Any, world: int, parallel: dict[str, Any]) -> None:
    check(ranks, world, Case(parallel=parallel, micro_batch=2, steps=5))


@pytest.mark.parametrize("cut", ["cost", "3,2"])
def test_uneven_stages(ranks: Any, cut: str) -> None:
    check(ranks, 2, Case(parallel={"pp": 2, "cut": cut}, model={"layers": 5}, micro_batch=2, steps=5))


# A family meets a layout whose cuts it could change; where the other has met it, the case is slow.
SLOW = [pytest.mark.slow]
MET = [(GPT2, {"tp": 2}), (GPT2, {"pp": 2, "tp": 2}), (MIXED, {"zero": 3}), (MIXED, {"cp": 2})]


@pytest.mark.parametrize(
    ("world", "parallel", "model"),
    [
        pytest.param(
            *layout, model, id=f"{label(layout[1])}-{name}", marks=[] if (model, layout[1]) in MET else SLOW
        )
        for name, model in (("gpt2", GPT2), ("mixed", MIXED))
        for layout in [
            (2, {"zero": 3}),
            (2, {"tp": 2}),
            (2, {"cp": 2}),
            (2, {"pp": 2, "schedule": "zbv_zero_bubble"}),
            (4, {"pp": 2, "tp": 2}),
            *((2, {"engine": "deepspeed", "zero": zero}) for zero in (1, 3)),
        ]
    ],
)
def test_a_family_on_this_layout(
    ranks: Any, world: int, parallel: dict[str, Any], model: dict[str, Any]
) -> None:
    micro = 1 if "pp" in parallel else 2
    documents = "cp" in parallel or parallel == {"tp": 2}
    check(ranks, world, Case(parallel=parallel, model=model, micro_batch=micro, steps=5, documents=documents))

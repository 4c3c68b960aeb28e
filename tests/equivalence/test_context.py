"""Context parallelism against one process, alone and with every other axis."""

from dataclasses import replace
from typing import Any

import pytest
import runs
from ranks import RankFailure
from runs import Case, curve, distance, reference
from torch import Tensor, nn

from trainer.models import attention, block
from trainer.models.decoder import Decoder


class Core(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        return attention.attend(q, k, v, mask)


class CoreAttention(attention.Attention):
    """Attention whose inner part is a module, so that a plan can name it."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.core = Core()

    def forward(self, x: Tensor, shared: Any, past: Any = None) -> Tensor:
        batch, seq, _ = x.shape
        q, k, v = (w(x).view(batch, seq, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = attention.rotate(q, *shared.rotary), attention.rotate(k, *shared.rotary)
        y = self.core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), shared.mask)
        return self.wo(y.transpose(1, 2).reshape(batch, seq, -1))


class CoreDecoder(Decoder):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        rule = ("layers.*.attention.core", "attention_core")
        self.plan = replace(self.plan, tensor=(*self.plan.tensor, rule))


def core_curve(context: Any, case: Case, fault: bool = False) -> list[tuple[float, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "Attention", CoreAttention)
        patch.setattr(runs, "Decoder", CoreDecoder)
        if fault:
            patch.setattr("parallel.parallelize.context_parallel", lambda *args: None)
        return curve(context, case)


@pytest.mark.parametrize("documents", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"cp": 2}),
        (2, {"cp": 2, "zero": 0}),
        (4, {"cp": 2, "zero": 2}),
        (4, {"cp": 2, "zero": 3, "recompute": "full"}),
        (4, {"cp": 2, "tp": 2}),
        (4, {"cp": 2, "pp": 2}),
        (8, {"cp": 2, "tp": 2, "pp": 2}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_context_parallelism(ranks: Any, world: int, parallel: dict[str, Any], documents: bool) -> None:
    case = Case(parallel=parallel, model={"kv_heads": 4}, micro_batch=2, steps=8, documents=documents)
    curves = ranks(world).run(core_curve, case)
    assert all(other == curves[0] for other in curves)
    assert distance(curves[0], reference(case)) < 1e-5


def test_attention_within_slices_is_found(ranks: Any) -> None:
    case = Case(parallel={"cp": 2}, model={"kv_heads": 4}, micro_batch=2, steps=2)
    assert distance(ranks(2).run(core_curve, case, True)[0], reference(case)) > 1e-4


def test_model_without_such_a_module_is_refused(ranks: Any) -> None:
    with pytest.raises(RankFailure, match=r"parallel\.cp=2: this kind of model"):
        ranks(2).run(plain_curve, Case(parallel={"cp": 2}, steps=1, micro_batch=2))


def plain_curve(context: Any, case: Case) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "Decoder", PlainDecoder)
        return curve(context, case)


class PlainDecoder(Decoder):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        rules = tuple(rule for rule in self.plan.tensor if rule[1] != "attention_core")
        self.plan = replace(self.plan, tensor=rules)

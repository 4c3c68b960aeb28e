"""How a vision transformer is cut, sharded and drawn. Imports no torch."""

from common.model_plan import ModelPlan, Tower
from trainer.models.blocks import block_styles, first_values

_TABLES = ("embed.tokens", "embed.places", "embed.masked", "head.pool.query")


def vision_plan(*, layers: int, hidden: int, init_std: float, head: str, attention_pool: bool) -> ModelPlan:
    """Return the plan of a `Vision`.

    First values are as in `decoder_plan`; matrices and tables are cut at three standard deviations, as in the
    published ones. Weight decay spares biases, norms, positions and learnt tokens.

    layers: number of blocks.
    hidden: width of the hidden states.
    init_std: standard deviation of the matrices.
    head: see `VisionConfig.head`.
    attention_pool: whether a learnt query pools.
    """
    return ModelPlan(
        towers=(Tower(blocks="layers", first=("embed",), last=("norm", "head")),),
        tensor=_styles(head=head, attention_pool=attention_pool),
        tied=(),
        hidden_shape=lambda shape: (*shape[:2], hidden),
        init=first_values(init_std, residual_layers=layers, kind="trunc_normal"),
        no_decay=lambda name, shape: len(shape) == 1 or name.endswith(_TABLES),
        task=("head",) if head == "classes" else (),
    )


def _styles(*, head: str, attention_pool: bool) -> tuple[tuple[str, str], ...]:
    """Return the styles of tensor parallelism of the modules; see `ModelPlan.tensor`."""
    parts = ["project"]
    if head != "pixels":
        parts = ["layers.*"]
        if attention_pool:
            parts += ["pool", *(f"pool.{name}" for name in ("wq", "wk", "wv", "wo", "mlp_norm"))]
            parts += ["pool.mlp.w1", "pool.mlp.w2"]
    return (
        ("embed", "split"),
        ("embed.project", "sequence"),
        ("embed.norm", "sequence"),
        *block_styles(),
        ("norm", "sequence"),
        ("head", "alike"),
        *((f"head.{name}", "sequence") for name in parts),
    )

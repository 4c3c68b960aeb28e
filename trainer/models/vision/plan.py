"""How a vision transformer is cut, sharded and drawn. Imports no torch."""

import math

from common.model_plan import Init, ModelPlan, Tower

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
    residual_std = init_std / math.sqrt(2 * layers)

    def init(name: str, shape: tuple[int, ...]) -> Init:
        if len(shape) == 1:
            return Init("zeros" if name.endswith(".bias") else "ones")
        in_block = name.startswith("layers.") and name.endswith((".wo.weight", ".w2.weight"))
        return Init("trunc_normal", residual_std if in_block else init_std)

    return ModelPlan(
        towers=(Tower(blocks="layers", first=("embed",), last=("norm", "head")),),
        tensor=vision_styles("", head=head, attention_pool=attention_pool),
        tied=(),
        hidden_shape=lambda shape: (*shape[:2], hidden),
        init=init,
        no_decay=lambda name, shape: len(shape) == 1 or name.endswith(_TABLES),
        task=("head",) if head == "classes" else (),
    )


def vision_styles(at: str, *, head: str, attention_pool: bool) -> tuple[tuple[str, str], ...]:
    """Return the styles of tensor parallelism of a vision transformer's modules; see `ModelPlan.tensor`.

    at: what stands before the modules' names, such as `image.` for a tower of a larger model.
    """
    parts = ["project"]
    if head != "pixels":
        parts = ["layers.*"]
        if attention_pool:
            parts += ["pool", *(f"pool.{name}" for name in ("wq", "wk", "wv", "wo", "mlp_norm"))]
            parts += ["pool.mlp.w1", "pool.mlp.w2"]
    styles = (
        ("embed", "split"),
        ("embed.project", "sequence"),
        ("embed.norm", "sequence"),
        ("layers.*.attention_norm", "sequence"),
        ("layers.*.attention", "gather"),
        *((f"layers.*.attention.{name}", "column") for name in ("wq", "wk", "wv")),
        ("layers.*.attention.core", "attention_core"),
        ("layers.*.attention.wo", "row"),
        ("layers.*.mlp_norm", "sequence"),
        ("layers.*.mlp", "gather"),
        ("layers.*.mlp.w1", "column"),
        ("layers.*.mlp.w2", "row"),
        ("norm", "sequence"),
        ("head", "alike"),
        *((f"head.{name}", "sequence") for name in parts),
    )
    return tuple((f"{at}{name}", style) for name, style in styles)

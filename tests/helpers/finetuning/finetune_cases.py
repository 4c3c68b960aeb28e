"""Each method of fine-tuning on a tiny model of classes, of texts or of pictures."""

from typing import Any

from picture_runs import CLASSES, PictureCase
from runs import VOCAB

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "probe": {"method": "probe"},
    "lora": {"method": "lora", "rank": 4, "targets": ["all"]},
    "adapters": {"method": "adapters", "bottleneck": 6},
}
SIZES = {"layers": 4, "hidden": 32, "heads": 4, "ffn_hidden": 48}
TEXT = {"kind": "text_classes", "vocab": VOCAB, "classes": CLASSES, "biases": True, **SIZES}
PICTURES = {
    "kind": "vision",
    "head": "classes",
    "classes": CLASSES,
    "image_size": 16,
    "patch_size": 4,
    **SIZES,
}


def case_of(method: str, *, pictures: bool = False, parallel: dict[str, Any] | None = None) -> PictureCase:
    return PictureCase(
        model=PICTURES if pictures else TEXT,
        objective={"kind": "classification"},
        tokens=not pictures,
        finetune=METHODS[method],
        parallel=parallel or {},
        global_batch=8,
        micro_batch=1,
    )

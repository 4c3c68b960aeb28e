"""How a model is fine-tuned, as plain data. Imports no torch.

A field states its key's meaning and limits in plain text; `trainer.config.keys` parses and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

Method = Literal["none", "full", "probe", "lora", "adapters"]


@dataclass
class FinetuneConfig:
    """Fine-tuning: what is trained of a model that begins with weights from elsewhere (`model.init_from`).

    The layer of a task, such as the logits of classes, is trained whole with every method.
    """

    method: Annotated[
        Method,
        "what is trained; none: this is pre-training; full: every parameter; probe: the layer of the task "
        "alone; lora: that and matrices of low rank beside linear layers; adapters: that and small layers "
        "behind attention and feed-forward layers",
        "probe or lora or adapters: needs parallel.engine=torch (DeepSpeed trains every parameter)",
        "lora or adapters: needs train.fp8=none (the small matrices have no 8-bit products)",
        "lora: needs parallel.async_tp=false (its branches are no part of the fused products)",
    ] = "none"
    rank: Annotated[int, "lora: columns of A and rows of B", "≥ 1"] = 8
    alpha: Annotated[float, "lora: the branch is multiplied by alpha / rank", "> 0", "≤ 3.4e38"] = 16.0
    targets: Annotated[
        list[str],
        "lora: the linear layers that get a branch, by the end of their names, such as wq or attention.wq; "
        "all: every linear layer of the blocks",
        "not empty",
    ] = field(default_factory=lambda: ["wq", "wv"])
    bottleneck: Annotated[int, "adapters: their inner width", "≥ 1"] = 64
    adapter: Annotated[
        str,
        "a folder with an adapter that the added matrices begin from, PEFT's or one that germinal export "
        "wrote; keys that are left out are the adapter's; empty: they are drawn",
    ] = ""
    class_weights: Annotated[
        list[float],
        "of each class in the loss of classification, which is the weighted sum over the sum of the weights; "
        "none: all are 1",
        "≥ 0",
    ] = field(default_factory=list)
    metric: Annotated[
        str,
        "the figure of the first held-out set that tells the best checkpoint, such as loss, top_1 or f1; "
        "empty: none does",
    ] = ""
    patience: Annotated[
        int,
        "the run ends after so many evaluations in a row without a better figure; 0: it does not",
        "≥ 0",
        "in evaluations",
        "needs finetune.metric",
    ] = 0
    keep_best: Annotated[
        bool, "the checkpoint of the best figure is saved and never deleted", "needs finetune.metric"
    ] = False

    @property
    def adds(self) -> bool:
        """Whether the model gets modules that its config does not describe."""
        return self.method in ("lora", "adapters")

    @property
    def freezes(self) -> bool:
        """Whether a part of the model is not trained."""
        return self.method in ("probe", "lora", "adapters")

    @property
    def scale(self) -> float:
        """What LoRA's branch is multiplied by."""
        return self.alpha / self.rank

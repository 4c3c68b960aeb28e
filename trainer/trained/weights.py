"""The weights of a checkpoint, or of a Hugging Face folder → a whole model on one device, or its part on each
rank of tensor parallelism.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from parallel.engine import Chunk
from parallel.layout.layout import Layout
from parallel.layout.mesh import make_mesh
from parallel.parameters.initialize import to_device
from parallel.torch_engine.parallelize import parallelize_for_decoding
from parallel.world.runtime import Runtime
from trainer.checkpoint.store import load
from trainer.config.run_config import RunConfig
from trainer.first_weights.fill import fill, fill_frozen, matched, parameter_of
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.open import check_base, open_base, whole_weights
from trainer.first_weights.source import WeightSource
from trainer.huggingface.folder import is_folder
from trainer.models.build import build_model
from trainer.models.tuned.tune import merge
from trainer.ranks import Ranks, on_every_rank


def load_model(cfg: RunConfig, folder: Path, device: str = "") -> nn.Module:
    """Build the model of a run with the weights of a checkpoint, or of a Hugging Face folder, in float32,
    ready to evaluate, whatever layout wrote the checkpoint. What a fine-tuned run does not train comes from
    where it began (`model.init_from`), and LoRA's branches are merged.

    Args:
        cfg: the run's config.
        folder: the checkpoint, which is verified (`trainer.checkpoint.folder.verify`); or the Hugging Face
            folder.
        device: where the model goes; default: the GPU, if there is one, else the CPU.

    Raises RuntimeError where a tensor is missing or has another shape, or where the frozen weights are not
    those that the checkpoint was trained beside.
    """
    with torch.device("meta"):
        model = build_model(cfg.model, finetune=cfg.finetune)
    to_device(model, torch.device("cpu"))
    # A tied weight is stored once.
    canonical_names = {alias: canonical for canonical, alias in cfg.plan().tied}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in canonical_names}
    chunks = [
        Chunk(f"model.{name}", tensor, tuple(tensor.shape), (0,) * tensor.ndim, owned=False)
        for name, tensor in state.items()
    ]
    fill_weights(chunks, cfg, folder, Ranks())
    for alias, canonical in canonical_names.items():
        model.get_parameter(alias).data = model.get_parameter(canonical).data
    merge(model)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def load_for_decoding(
    cfg: RunConfig, folder: Path, layout: Layout, runtime: Runtime, ranks: Ranks
) -> nn.Module:
    """Build this rank's part of the model of a run, which reads token by token and gives whole logits on
    every rank; see `parallel.transforms.decoding`. Collective.

    layout: of tensor parallelism alone.

    LoRA's branches are merged block by block as they are read; adapters stay, whole on every rank.
    """
    mesh = make_mesh(layout, runtime.device, fsdp=False)
    merged = cfg.finetune.method == "lora"
    plan, added = (cfg.model.plan(), None) if merged else (cfg.plan(), cfg.finetune)
    built = parallelize_for_decoding(
        plan, lambda: build_model(cfg.model, finetune=added), layout, mesh, runtime.device
    )
    chunks = [parameter.chunk("model", parameter.tensor) for parameter in built.parameters]
    if merged:
        _fill_whole(chunks, cfg, whole_weights(cfg, folder, ranks), ranks)
    else:
        fill_weights(chunks, cfg, folder, ranks)
    return built.stages[0]


def fill_weights(chunks: Sequence[Chunk], cfg: RunConfig, folder: Path, ranks: Ranks) -> None:
    """Fill the chunks of a model: from a Hugging Face folder; or from a checkpoint, and those that it does
    not hold from the run's first weights. Collective.

    RuntimeError where the folder lacks a parameter; else as of `load_model`.
    """
    if is_folder(folder):
        _fill_whole(chunks, cfg, ranks.together(lambda: HuggingFaceSource(folder)), ranks)
        return
    trained = cfg.plan().trained
    ranks.together(lambda: load(folder, [chunk for chunk in chunks if trained(parameter_of(chunk))]))
    base = open_base(cfg, ranks, run=folder.parent.parent)
    ranks.together(lambda: check_base(base, folder))
    fill_frozen(base, [chunk for chunk in chunks if not trained(parameter_of(chunk))], cfg, ranks)


def _fill_whole(chunks: Sequence[Chunk], cfg: RunConfig, source: WeightSource, ranks: Ranks) -> None:
    """Fill the chunks from a source that has all of them."""
    found = matched(chunks, source, cfg, ranks)
    for name in (*found.drawn, *sorted(found.enlarged)):
        raise on_every_rank(
            RuntimeError(
                f"{source.where}: does not have all of {name}: it holds the model without the layers of its "
                "task, so there is nothing to ask it: fine-tune it first (model.init_from)"
            )
        )
    ranks.together(lambda: fill(chunks, source, found))

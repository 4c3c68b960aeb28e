"""A checkpoint's weights → a whole model on one device, or its part on each rank of tensor parallelism."""

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
from trainer.first_weights.base import check_base, fill_frozen, open_base
from trainer.first_weights.fill import parameter_of
from trainer.models.build import build_model
from trainer.models.tuned.tune import merge
from trainer.ranks import Ranks


def load_model(cfg: RunConfig, folder: Path, device: str = "") -> nn.Module:
    """Build the model of a run with the weights of a checkpoint in float32, ready to evaluate, whatever
    layout wrote the checkpoint. What a fine-tuned run does not train comes from where it began
    (`model.init_from`), and LoRA's branches are merged.

    Args:
        cfg: the run's config.
        folder: the checkpoint, which is verified (`trainer.checkpoint.folder.verify`).
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
    _fill(chunks, cfg, folder, Ranks())
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

    ValueError where the run has added modules to its model.
    """
    if cfg.finetune.adds:
        raise ValueError(
            f"finetune.method={cfg.finetune.method}: what is added to the model is not cut for decoding: "
            "generate in one process"
        )
    mesh = make_mesh(layout, runtime.device, fsdp=False)
    built = parallelize_for_decoding(cfg.plan(), lambda: build_model(cfg.model), layout, mesh, runtime.device)
    chunks = [parameter.chunk("model", parameter.tensor) for parameter in built.parameters]
    _fill(chunks, cfg, folder, ranks)
    return built.stages[0]


def _fill(chunks: Sequence[Chunk], cfg: RunConfig, folder: Path, ranks: Ranks) -> None:
    """Fill the chunks from the checkpoint, and those that it does not hold from the run's first weights."""
    trained = cfg.plan().trained
    ranks.together(lambda: load(folder, [chunk for chunk in chunks if trained(parameter_of(chunk))]))
    base = open_base(cfg, ranks, run=folder.parent.parent)
    ranks.together(lambda: check_base(base, folder))
    fill_frozen(base, [chunk for chunk in chunks if not trained(parameter_of(chunk))], cfg, ranks)

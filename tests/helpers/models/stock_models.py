"""Models of `transformers` with random weights, and folders as it writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.huggingface import choose
from trainer.huggingface.mapping import by_theirs
from trainer.models.config import ModelConfig

SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 100,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
            "n_layer": 3,
            "n_embd": 48,
            "n_head": 4,
            "vocab_size": 50,
            "n_positions": 40,
        },
    ),
    "llama2": ("LlamaForCausalLM", "LlamaConfig", SMALL | {"num_key_value_heads": 4}),
    "llama3": (
        "LlamaForCausalLM",
        "LlamaConfig",
        SMALL | {"rope_parameters": STRETCHED, "tie_word_embeddings": True},
    ),
    "llama_biases": ("LlamaForCausalLM", "LlamaConfig", SMALL | {"attention_bias": True, "mlp_bias": True}),
    "linear_rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        SMALL | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", SMALL | {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SMALL | {"tie_word_embeddings": True}),
    "qwen3": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        SMALL
        | {
            "head_dim": 20,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
}
"""Name → class of the model, class of its config, and the config's keys."""


def stock(cls: str, config: str, keys: Mapping[str, Any]) -> nn.Module:
    """Make a model of transformers that drops nothing out; no norm or bias is left as it starts."""
    import transformers

    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, cls)(getattr(transformers, config)(**keys))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at one, biases at zero, where a missing one would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def tokens(seq: int = 32, rows: int = 2) -> Tensor:
    return torch.randint(50, (rows, seq), generator=torch.Generator().manual_seed(1))


def write_folder(
    path: Path, cfg: ModelConfig, *, shards: int = 2, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write a model of random weights as a folder, without transformers; return their tensors."""
    family, config = choose.for_export(cfg, 32)
    path.mkdir(parents=True)
    config |= {"architectures": [family.architecture], "model_type": family.model_type}
    (path / "config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(2)
    tensors = {
        name: (0.1 * torch.randn(parts[0].whole, generator=draw)).to(dtype)
        for name, parts in by_theirs(family.mapped(cfg)).items()
    }
    names = sorted(tensors)
    files = {
        name: f"model-{1 + at % shards:05d}-of-{shards:05d}.safetensors" for at, name in enumerate(names)
    }
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tensors


def as_ours(cfg: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our parameters, cut out of their tensors by the rule that `Mapped` states."""
    family, _ = choose.for_export(cfg, 32)
    found = {}
    for one in family.mapped(cfg):
        whole = tensors[one.theirs]
        rows = whole.t() if one.transposed else whole.reshape(-1, prod(one.shape[1:]))
        found[one.ours] = rows[one.first : one.first + one.shape[0]].reshape(one.shape)
    return found


def without(cfg: Any, **changes: Any) -> Any:
    return replace(cfg, **changes)

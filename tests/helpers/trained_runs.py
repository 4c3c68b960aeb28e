"""Run folders as training leaves them, made without training: a small model with random weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.config import DataConfig, Source
from data.tokenizer import training
from parallel.engine import Chunk
from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.pieces.files import FileEntry, digest
from trainer.checkpoint.store import write_part
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.objectives.config import CausalLMConfig, ObjectiveConfig
from trainer.state import Identity

VOCAB = 257


def model_config(tied: bool = False) -> DecoderConfig:
    return DecoderConfig(layers=2, hidden=32, heads=4, kv_heads=2, vocab=VOCAB + 7, tie_embeddings=tied)


def drawn(cfg: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)  # decided enough that ties are out of reach
    return model


def make_trained_run(
    folder: Path,
    tied: bool = True,
    steps: Sequence[int] = (1, 2),
    eos: int = 0,
    identity: dict[str, Any] | None = None,
    model: ModelConfig | None = None,
    weights: Mapping[str, Tensor] | None = None,
    objective: ObjectiveConfig | None = None,
    data: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    tokenizer: bytes = b"",
) -> Any:
    """A run folder as training leaves it; the newest checkpoint holds the returned model: of random weights,
    or of `weights`.
    """
    cfg = RunConfig(
        name=folder.name,
        model=model or model_config(tied),
        data=DataConfig(
            **{"sources": [Source(path=str(folder / "no-corpus"))], "seq_len": 32, **(data or {})}
        ),
        objective=objective or CausalLMConfig(),
        run_dir=str(folder),
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(reading.dump(cfg))
    (folder / "events.jsonl").touch()
    content = tokenizer or training.utf8_bytes().to_str(pretty=True).encode()
    (folder / "tokenizer.json").write_bytes(content)
    sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    own = Identity(tokenizer={"sha256": sha256, "eos": eos}, classes=list(classes)).to_json()
    model = drawn(cfg.model)
    if weights is not None:
        model.load_state_dict(dict(weights), strict=False)
    for step in steps:
        tmp, final = folder / f".tmp-{step}", checkpoints.step_folder(folder / "checkpoints", step)
        tmp.mkdir()
        final.parent.mkdir(exist_ok=True)
        scale = 1.0 if step == steps[-1] else 0.5
        chunks = [
            Chunk(f"model.{name}", scale * p.detach(), tuple(p.shape), (0,) * p.ndim, owned=True)
            for name, p in model.named_parameters()
        ]
        part = write_part(tmp, 0, chunks)
        so_far = {"step": step, "sequences": step, "tokens": 32 * step}
        state = json.dumps({"state": so_far, "identity": own if identity is None else identity})
        (tmp / checkpoints.STATE).write_text(state)
        part.files[checkpoints.STATE] = FileEntry(len(state), digest(state.encode()))
        checkpoints.commit(tmp, final, [part], step=step, sequences=step)
    return model


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)

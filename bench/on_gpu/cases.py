"""What `bench/gpu.py` measures: models from 125M to 8B, each fitted onto one device."""

from dataclasses import dataclass
from typing import Any

from data.config import DataConfig, Source
from parallel.config import ParallelConfig
from trainer.config.run_config import RunConfig
from trainer.config.sections import OptimConfig, TrainConfig
from trainer.models.decoder.config import DecoderConfig


@dataclass(frozen=True)
class Size:
    """A model and how it is fitted onto one device.

    name: in the table.
    model: its config.
    seq_len: tokens of a sequence.
    most_tokens: of a micro-batch: where the search for one that fits begins.
    zero, recompute, state_dtype: as in the config.
    """

    name: str
    model: DecoderConfig
    seq_len: int
    most_tokens: int
    zero: int = 1
    recompute: str = "none"
    state_dtype: str = "fp32"


def decoder(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any) -> Any:
    return DecoderConfig(
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn_hidden=ffn, vocab=vocab, **more
    )


SIZES = [
    Size("125M", decoder(12, 768, 12, 12, 2048, 50304, tie_embeddings=True), 1024, 1 << 17),
    Size("350M", decoder(24, 1024, 16, 16, 2816, 50304, tie_embeddings=True), 2048, 1 << 16),
    Size("1B", decoder(16, 2048, 32, 8, 8192, 128256, tie_embeddings=True, rope_theta=5e5), 4096, 1 << 16),
    # Moments in bf16 and weights gathered block by block: 12 bytes a parameter, where 1B has 18.
    Size(
        "8B",
        decoder(32, 4096, 32, 8, 14336, 128256, rope_theta=5e5),
        8192,
        1 << 16,
        zero=3,
        recompute="full",
        state_dtype="bf16",
    ),
]
SMOKE = [
    Size("toy", decoder(2, 64, 4, 2, 128, 512), 64, 256),
    Size("toy-deep", decoder(4, 64, 4, 2, 128, 512), 64, 128, zero=3, recompute="full", state_dtype="bf16"),
]


def config_of(size: Size, fp8: str, micro_batch: int, accumulate: int, *, compiled: bool) -> RunConfig:
    return RunConfig(
        name="gpu",
        model=size.model,
        data=DataConfig(sources=[Source(path="unused")], seq_len=size.seq_len),
        optim=OptimConfig(lr=1e-4, state_dtype=size.state_dtype),  # type: ignore[arg-type]
        train=TrainConfig(
            steps=1_000_000,
            global_batch=micro_batch * accumulate,
            micro_batch=micro_batch,
            precision="bf16",
            fp8=fp8,  # type: ignore[arg-type]
        ),
        parallel=ParallelConfig(zero=size.zero, recompute=size.recompute, compile=compiled),
    )


def state_bytes(size: Size) -> int:
    """Return the bytes of fp32 weights and gradients, moments, and bf16 weights where they stay gathered."""
    each = 8 + 2 * (2 if size.state_dtype == "bf16" else 4) + (0 if size.zero == 3 else 2)
    return each * size.model.parameters().total

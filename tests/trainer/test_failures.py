"""What a rank says of a failure: one line with what to do."""

from pathlib import Path

import pytest
import torch

from data.config import DataConfig, Source
from trainer.__main__ import FAILED, fail
from trainer.config import RunConfig
from trainer.models.config import DecoderConfig


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory: lower data.seq_len, train.micro_batch or the model's sizes"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
            "Tried to allocate 2.00 GiB. GPU 0 has: lower train.micro_batch, set parallel.recompute=full or",
        ),
    ],
)
def test_out_of_memory_says_what_to_lower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    cfg = RunConfig(
        name="run",
        model=DecoderConfig(layers=1, hidden=8, heads=1, kv_heads=1, vocab=8),
        data=DataConfig(sources=[Source(path="corpus")]),
        run_dir=str(tmp_path / "run"),
    )
    assert fail(error, cfg, 3) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line and line.endswith("faults/rank-00003.txt)")

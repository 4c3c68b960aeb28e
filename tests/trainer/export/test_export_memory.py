"""Memory of export and import: of one shard, whatever the model. Measured in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from trained_runs import make_trained_run
from trainer.models.decoder.config import DecoderConfig

SHARD_BYTES = 40 * 10**6
ALLOWED_BYTES = SHARD_BYTES + 200 * 10**6
# 540 MB in float32, more than ten shards; and its tables are two shards each.
MODEL = DecoderConfig(layers=6, hidden=1024, heads=16, ffn_hidden=4096, vocab=19000)

PEAK = """
import re, sys
from pathlib import Path
def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
EXPORT = (
    PEAK
    + """
from trainer.export.export import export
before = status("VmRSS")
export(sys.argv[1], Path(sys.argv[2]), step=None, dtype=sys.argv[3], shard_bytes=int(sys.argv[4]))
print(status("VmHWM") - before)
"""
)
IMPORT = (
    PEAK
    + """
import torch
from parallel.engine import Chunk
from trainer.first_weights.fill import fill
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.match import match
source = HuggingFaceSource(Path(sys.argv[1]))
tensors = {name: torch.zeros(shape) for name, shape in source.parameters.items()}
for tensor in tensors.values():
    tensor.fill_(1.0)  # all of its pages are there
chunks = [Chunk(f"model.{n}", t, tuple(t.shape), (0,) * t.ndim, owned=False) for n, t in tensors.items()]
found = match(source.parameters, source, source.model.plan())
before = status("VmRSS")
fill(chunks, source, found)
assert all(float(tensor.std()) != 0.0 for tensor in tensors.values() if tensor.ndim > 1)
print(status("VmHWM") - before)
"""
)


def peak(script: str, *arguments: object) -> int:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_a_shard(tmp_path: Path) -> None:
    make_trained_run(tmp_path / "run", steps=(1,), model=MODEL)
    total = 4 * MODEL.parameters().total
    assert total > 10 * SHARD_BYTES
    for dtype in ("fp32", "bf16"):
        found = peak(EXPORT, tmp_path / "run", tmp_path / dtype, dtype, SHARD_BYTES)
        print(f"export as {dtype}: {found / 1e6:.0f} MB beside what the program is")
        assert found <= ALLOWED_BYTES < total
        assert len(list((tmp_path / dtype).glob("*.safetensors"))) > 5
        found = peak(IMPORT, tmp_path / dtype)
        print(f"import of {dtype}: {found / 1e6:.0f} MB beside program and model")
        assert found <= ALLOWED_BYTES

"""Reading first weights into a real engine: each rank reads its own parts, one block at a time."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ranks import RankPools
from runs import Case, build, model_of
from stock_models import write_folder
from trained_runs import make_trained_run
from trainer.export.export import export
from trainer.first_weights import source as sources
from trainer.first_weights.fill import fill, parameter_of
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.first_weights.match import match
from trainer.models.decoder.config import DecoderConfig
from whole_runs import environment, make_corpus, write_config

BLOCK_BYTES = 4096
SHARD_BYTES = 40 * 10**6
ALLOWED_BYTES = SHARD_BYTES + 200 * 10**6
# 360 MB in float32: nine shards, more than is allowed.
MODEL = DecoderConfig(layers=8, hidden=768, heads=12, ffn_hidden=3072, vocab=9000)


class Counting(HuggingFaceSource):
    """Counts the bytes that it was asked for: in all, and at most between two times that it forgets."""

    total = held = most = 0

    def read(self, name: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        found = super().read(name, offset, shape)
        self.total += found.nbytes
        self.held += found.nbytes
        self.most = max(self.most, self.held)
        return found

    def forget(self) -> None:
        super().forget()
        self.held = 0


def counted(context: Any, case: Case, folder: Path) -> tuple[int, int, int]:
    """Bytes of weights that the rank keeps, that it read, and that it held at once."""
    engine, source, before = build(case, context.rank, context.world), Counting(folder), sources.BLOCK_BYTES
    sources.BLOCK_BYTES = BLOCK_BYTES
    try:
        chunks = [chunk for chunk in engine.chunks() if parameter_of(chunk)]
        fill(chunks, source, match(source.parameters, source, model_of(case).plan()))
        return sum(chunk.tensor.nbytes for chunk in chunks), source.total, source.most
    finally:
        sources.BLOCK_BYTES = before
        engine.close()


@pytest.mark.parametrize(("zero", "copies"), [(3, 1), (0, 2)], ids=["zero3", "zero0"])
def test_a_rank_reads_its_own_parts_once_and_holds_a_block(
    zero: int, copies: int, ranks: RankPools, tmp_path: Path
) -> None:
    case = Case(parallel={"zero": zero}, model={}, micro_batch=2)
    write_folder(tmp_path / "folder", model_of(case))
    whole = 4 * model_of(case).parameters().total
    found = ranks(2).run(counted, case, tmp_path / "folder")
    for kept, read, most in found:
        assert read == kept
        assert 0 < most <= BLOCK_BYTES
    assert sum(read for _, read, _ in found) == copies * whole
    assert whole > 10 * BLOCK_BYTES


RANK = """
import re, sys
from pathlib import Path
from trainer import run
from trainer.__main__ import main
def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
begin = run.begin
def measured(*arguments):
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    before = status("VmRSS")
    source = begin(*arguments)
    print(f"peak of reading: {status('VmHWM') - before} bytes over {before}", file=sys.stderr, flush=True)
    return source
run.begin = measured
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_start_is_that_of_a_shard(tmp_path: Path) -> None:
    """`germinal train` with `model.init_from`, on one process and with ZeRO-3 on two."""
    make_trained_run(tmp_path / "base", steps=(1,), model=MODEL)
    export(tmp_path / "base", tmp_path / "folder", step=None, dtype="fp32", shard_bytes=SHARD_BYTES)
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 5
    assert 4 * MODEL.parameters().total > ALLOWED_BYTES
    config = write_config(
        tmp_path,
        make_corpus(tmp_path),
        model={"init_from": str(tmp_path / "folder")},
        train={"steps": 1, "global_batch": 2, "micro_batch": 1},
        checkpoint={"every": 0},
    )
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    for name, world in (("one", 1), ("zero3", 2)):
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc-per-node",
                    str(world),
                ),
                *(str(script), str(config), f"run_dir={tmp_path / name}"),
                f"parallel.zero={3 if world > 1 else 0}",
            ],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = re.findall(r"peak of reading: (\d+) bytes over (\d+)", done.stderr)
        assert len(found) == world
        for more, before in found:
            print(f"{name}: {int(more) / 1e6:.0f} MB over the {int(before) / 1e6:.0f} of program and model")
            assert int(more) <= ALLOWED_BYTES

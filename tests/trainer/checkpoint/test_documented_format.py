"""docs/checkpoints.md is true: its program reads what several ranks saved, and its hashes are those there."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from checkpointed import ROWS, FakeEngine, Team, make
from trainer.checkpoint import folder as folders
from trainer.state import TrainState

DOCUMENT = Path(__file__).parents[3] / "docs/checkpoints.md"


def saved_by(world: int, run: Path) -> Path:
    """A checkpoint in which row r of each sharded tensor holds 10 · r, 10 · r + 1, …"""
    team = Team(world)

    def save(rank: int) -> None:
        engine = FakeEngine(rank, world)
        for tensor in engine.sharded.values():
            tensor.copy_(expected()[engine.rows])
        make(run, rank, team).save(TrainState(3, 24, 192), engine)  # type: ignore[arg-type]

    assert team.run(save) == [None] * world
    return folders.step_folder(run / "checkpoints", 3)


def expected() -> Any:
    import torch

    return torch.arange(ROWS)[:, None] * 10.0 + torch.arange(5.0)


def test_the_documents_program_reads_every_tensor_whole(tmp_path: Path) -> None:
    at = saved_by(3, tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    tensors = names["read_checkpoint"](at)
    assert sorted(tensors) == ["model.norm", "model.w", "optim.exp_avg.w"]
    np.testing.assert_array_equal(tensors["model.w"], expected().numpy())
    np.testing.assert_array_equal(tensors["optim.exp_avg.w"], expected().numpy())
    assert tensors["model.norm"].shape == (7,)


def test_the_hashes_are_as_documented(tmp_path: Path) -> None:
    at = saved_by(2, tmp_path)
    manifest = json.loads((at / "MANIFEST.json").read_text())
    rows = (at / "FILES.txt").read_text().splitlines()
    files = dict(manifest["files"])
    for row in rows:
        name, size, content, proof = row.split()
        assert len(row) == len(rows[0])
        assert proof == xxhash.xxh3_128(f"{manifest['table']['mark']}{row[:-33]}".encode()).hexdigest()
        if size != "-":
            files[name] = {"bytes": int(size), "xxh3_128": content}
    for name, entry in files.items():
        data = (at / name).read_bytes()
        assert entry == {"bytes": len(data), "xxh3_128": xxhash.xxh3_128(data).hexdigest()}
    own = manifest.pop("xxh3_128")
    bare = (at / "MANIFEST.json").read_bytes().replace(f',"xxh3_128":"{own}"}}\n'.encode(), b"}")
    assert own == xxhash.xxh3_128(bare).hexdigest()
    assert {path.name for path in at.iterdir()} == {"MANIFEST.json", *files}
    assert len(rows) == manifest["table"]["ranks"] * manifest["table"]["most"]


def test_every_key_is_documented(tmp_path: Path) -> None:
    at = saved_by(2, tmp_path)
    text = DOCUMENT.read_text()
    for file in ("MANIFEST.json", "state.json"):
        for key in json.loads((at / file).read_text()):
            assert f"`{key}`" in text, (file, key)
    for key in json.loads((at / "MANIFEST.json").read_text())["table"]:
        assert f"`{key}`" in text, key

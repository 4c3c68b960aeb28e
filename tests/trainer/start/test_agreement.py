"""What must be equal on all ranks, and what a resume says of another version."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpointed import Team
from data.config import DataConfig, Heldout, Source
from parallel.world import runtime as runtimes
from trainer.config import reading
from trainer.config.run_config import RunConfig
from trainer.folder.fence import Fence
from trainer.models.decoder.config import DecoderConfig
from trainer.ranks import Ranks
from trainer.run import assemble
from trainer.start.agreement import Facts, agree, place, settings
from whole_runs import events, make_corpus, write_config


def test_the_first_rank_that_differs_is_named_with_the_key_and_both_values() -> None:
    team = Team(4)

    def rank(number: int) -> None:
        mine = Facts({"a": 1, "b": number // 2, "c": [number // 3]}, "do this")
        agree(team.ranks(number), Facts({"x": 1}, "do that"), mine)

    for told in team.run(rank):
        assert isinstance(told, ValueError)
        assert str(told) == "rank 2 does not run what rank 0 runs: b is 1, on rank 0 0: do this"


def test_ranks_that_are_alike_go_on() -> None:
    team = Team(3)
    alike = Facts({"a": [1], "b": "x"}, "")
    assert team.run(lambda number: agree(team.ranks(number), alike)) == [None] * 3


def test_what_a_node_may_have_of_its_own_is_not_compared() -> None:
    data = DataConfig([Source("/a/train")], [Heldout("/a/heldout")])
    model = DecoderConfig(layers=1, hidden=8, heads=1, vocab=8)
    here = RunConfig("one", model, data, run_dir="/a/run")
    there = RunConfig("two", model, DataConfig([Source("/b")], [Heldout("/c")]), run_dir="/b/run")
    there.data.cache_dir, there.data.decode_threads, there.train.threads = "/scratch", 5, 3
    assert settings(here) == settings(there)
    for change in ("data.sources[0].weight", "optim.lr", "parallel.tp", "model.layers", "seed"):
        assert change in settings(here).values


def placed(context: Any, folders: list[Path]) -> str:
    fence, ranks = Fence(folders[context.rank]), Ranks(context.rank, context.world)
    fence.join(ranks.on_rank_zero(fence.take))
    return place(folders[context.rank], fence, ranks).values["run_dir"]


def test_a_folder_is_the_same_by_whatever_path(ranks: Any, tmp_path: Path) -> None:
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    same = ranks(2).run(placed, [tmp_path / "run", tmp_path / "link"])
    assert same[0] == same[1] and same[0].startswith(f"{tmp_path / 'run'} on ")
    apart = ranks(2).run(placed, [tmp_path / "run", tmp_path / "other"])
    assert apart[1].startswith(f"{tmp_path / 'other'} on ") and apart[0] == same[0]


def test_a_resume_under_another_version_is_told_and_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, make_corpus(tmp_path, documents=20), train__eval_every=0, model__layers=1)

    def go(steps: int) -> str:
        with ExitStack() as stack:
            cfg = reading.load(config, [f"train.steps={steps}"])
            assert assemble(cfg, runtimes.start(env={"OMP_NUM_THREADS": "1"}), stack)()
        return "".join(event["reason"] for event in events(tmp_path / "run", "resume"))

    go(1)
    assert "torch" not in go(2), "nothing changed"
    before = torch.__version__
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert f"torch {before} → 9.9.9" in go(3)

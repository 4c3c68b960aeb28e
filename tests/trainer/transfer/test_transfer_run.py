"""`germinal transfer`, whole: a comparison of a few fine-tunings, interrupted, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.corpus.corpus import open_storage
from data.corpus.manifest import read_manifest
from data.corpus.tar import samples
from data.verify.verify import verify
from few_trials import write_comparison
from launch import cli
from parallel.world.runtime import Runtime
from trainer.config import transferring
from trainer.config.transferring import Transfer
from trainer.transfer import command, labels, plan, table, trial
from trainer.transfer.records import Records
from whole_runs import failure, train_here


def documents(folder: Path) -> list[str]:
    """The keys of a corpus's documents, in order."""
    storage = open_storage(str(folder))
    return [
        sample.key
        for number in range(len(storage.manifest().shards))
        for sample in samples(storage.open(number).view, "")
    ]


def records_of(found: Transfer) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (found.cfg.folder / "trials").glob("*.json")}


@pytest.fixture(scope="module")
def begun(corpus: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Transfer:
    """A comparison whose labels and random weights are drawn, with a pre-trained model."""
    found = transferring.load(write_comparison(tmp_path_factory.mktemp("begun"), corpus))
    command.begin(found, runtime)
    assert train_here(found.pretrain_file)
    return found


def test_labels_are_nested_disjoint_from_validation_and_none_is_held_out(begun: Transfer) -> None:
    cfg = begun.cfg
    validation = set(documents(labels.validation(cfg)))
    heldout = set(documents(Path(cfg.heldout)))
    assert len(validation) == 8
    draws = []
    for seed in range(2):
        four, six = (documents(labels.folder_of(cfg, number, seed)) for number in (4, 6))
        assert six[:4] == four and len(set(six)) == 6
        assert not set(six) & (validation | heldout)
        draws.append(six)
    assert draws[0] != draws[1]
    folder = labels.folder_of(cfg, 6, 0)
    assert read_manifest(folder).classes == read_manifest(cfg.labelled).classes
    assert not verify(folder)


def test_fine_tunings_of_a_seed_differ_in_first_weights_alone(begun: Transfer) -> None:
    pair = [plan.Trial(arm, "lora", 4, 1, 0.01, plan.HELDOUT) for arm in plan.ARMS]
    one, other = (trial.config_of(each, begun) for each in pair)
    assert one.model.init_from == str(begun.pretrained)
    assert other.model.init_from == str(trial.random_weights(begun, 1))
    one.model.init_from = other.model.init_from = ""
    one.name = other.name = one.run_dir = other.run_dir = ""
    assert one == other
    assert [each.path for each in one.data.heldout] == [begun.cfg.heldout]
    assert one.train.global_batch == 4  # as many as there are labels
    chosen_by = plan.Trial(plan.RANDOM, "full", 6, plan.FIRST_RATE_DRAW, 0.01, plan.VALIDATION)
    assert [each.path for each in trial.config_of(chosen_by, begun).data.heldout] == [
        str(labels.validation(begun.cfg))
    ]


@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on_and_repeats_nothing(
    begun: Transfer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.share(begun, runtime, "rates", 0, 1) == 0
    done = records_of(begun)
    assert len(done) == 2 * 2  # rates of `full`, two kinds of weights
    ran: list[str] = []
    real = trial.run_trial

    def killed_at_the_sixth(each: plan.Trial, found: Transfer, on: Runtime) -> bool:
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(each.key)
        return real(each, found, on)

    monkeypatch.setattr(trial, "run_trial", killed_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        command.share(begun, runtime, "scores", 0, 2)
    monkeypatch.setattr(trial, "run_trial", lambda *each: ran.append(each[0].key) or real(*each))
    before = records_of(begun)
    for worker in range(2):
        assert command.share(begun, runtime, "scores", worker, 2) == 0
    after = records_of(begun)
    assert {name: after[name] for name in before} == before
    wanted = list(plan.score_trials(begun.cfg, Records(begun.cfg).scores()))
    assert sorted(ran) == sorted(each.key for each in wanted) and len(ran) == 2 * 2 * 2 * 2
    assert not list((begun.cfg.folder / "running").iterdir())
    made = table.make(Records(begun.cfg))
    assert [(row.method, row.labels) for row in made.rows] == [
        ("full", 4), ("full", 6), ("lora", 4), ("lora", 6),
    ]  # fmt: skip
    assert all(len(row.pretrained) == len(row.random) == 2 for row in made.rows)


def test_one_that_ended_before_all_was_drawn_draws_the_rest(
    corpus: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = transferring.load(write_comparison(tmp_path, corpus))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trial, "write_random_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            command.begin(found, runtime)
    assert labels.validation(found.cfg).is_dir() and not Records(found.cfg).begun()
    # Nothing is fine-tuned yet: a mistake in the config may be mended, and what depends on it is drawn anew.
    changed = transferring.load(write_comparison(tmp_path, corpus, validation=9))
    assert not labels.validation(changed.cfg).is_dir()
    command.begin(changed, runtime)
    assert len(documents(labels.validation(changed.cfg))) == 9
    for seed in plan.seeds(changed.cfg):
        assert trial.random_weights(changed, seed).is_dir()
    assert Records(changed.cfg).begun()
    with pytest.raises(ValueError, match="validation: not as it was when"):
        transferring.load(write_comparison(tmp_path, corpus))
    more = transferring.load(write_comparison(tmp_path, corpus, validation=9, rate_draws=2))
    assert not Records(more.cfg).begun()


def test_the_command_draws_the_table_of_what_is_done(
    begun: Transfer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["transfer", str(begun.cfg.folder / transferring.RECORD), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "| lora | 6 |" in out
    document = json.loads((begun.cfg.folder / table.DOCUMENT).read_text())
    assert len(document["rows"]) == 4 and document["trials"] == 20
    assert (begun.cfg.folder / "transfer.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line_each(
    corpus: Path, begun: Transfer, tmp_path: Path, runtime: Runtime, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(**changes: Any) -> str:
        code, line = failure(capfd, "transfer", str(write_comparison(tmp_path, corpus, **changes)))
        assert code == 2
        return line

    assert "methods[0]='prob': not one of" in said(methods=["prob"])
    assert "rates.probe: missing" in said(methods=["probe"])
    assert "heldout" in said(labelled=str(corpus / "heldout"))
    assert "is heldout, whose documents the scores are of" in said(heldout=str(corpus / "train"))
    assert "finetune.seed" in said(finetune={"seed": 1})
    assert "metric=loss" in said(metric="loss")
    assert "pretrain: missing" in said(pretrain=None)
    few = transferring.load(write_comparison(tmp_path, corpus, labels=[4, 40]))
    with pytest.raises(ValueError, match=r"labels=40: .* ask for at most 3\d"):
        command.begin(few, runtime)
    unknown = transferring.load(write_comparison(tmp_path / "unknown", corpus, metric="top_9"))
    with pytest.raises(ValueError, match=r"finetune.metric=top_9: an evaluation of objective.kind"):
        command.begin(unknown, runtime)
    with pytest.raises(ValueError, match="validation: not as it was when"):
        transferring.load(begun.cfg.folder / transferring.RECORD, ["validation=9"])
    grown = transferring.load(begun.cfg.folder / transferring.RECORD, ["seeds=3"])
    assert not Records(grown.cfg).begun()

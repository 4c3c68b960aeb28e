"""Law 6 from outside: each mistake or damage is one line on standard error and the right exit code."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from common.exit_codes import FAILED, WRONG
from whole_runs import (
    GERMINAL,
    environment,
    events,
    germinal,
    make_corpus,
    newest,
    records,
    train,
    train_here,
    write_config,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def refused(code: int, *words: str, command: tuple[object, ...]) -> str:
    """The command exits with `code`, and its only error holds all of `words`. Returns what it said."""
    done = germinal(*command)
    assert done.returncode == code, (done.returncode, done.stderr[-2000:])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    for word in words:
        assert word in errors[0], errors[0]
    return done.stderr


@pytest.mark.parametrize(
    ("nproc", "override", "words"),
    [
        (1, "optim.learning_rate=0.1", ("optim.learning_rate", "0.1", "optim.lr")),
        (1, "train.steps=many", ("train.steps", "many")),
        (3, "parallel.tp=2", ("2", "3")),
        (4, "parallel.tp=4", ("kv_heads=2", "tp=4")),
        (3, "parallel.pp=3", ("layers=4", "3")),
        (1, "data.sources=[{path: nowhere}]", ("nowhere", "data.sources[0].path")),
        (1, "model.vocab=64", ("model.vocab=64", "tokenizer")),
        (2, "train.global_batch=6", ("global_batch=6", "micro_batch=2")),
    ],
)
def test_wrong_config(
    nproc: int, override: str, words: tuple[str, ...], corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus)
    refused(WRONG, *words, command=("train", config, "--nproc", nproc, override))
    assert not (tmp_path / "run").exists(), "a wrong config leaves nothing behind"


def test_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        WRONG,
        str(tmp_path / "empty"),
        command=("prepare", tmp_path / "empty", "--out", tmp_path / "out", "--tokenizer", "bytes"),
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    with (corpus / "train" / "tokenizer.json").open("a") as tokenizer:
        tokenizer.write(" ")
    refused(FAILED, "tokenizer.json", "sha256", command=("train", write_config(tmp_path, corpus)))
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_corpus_changed_since_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = make_corpus(tmp_path / "one", seed=1), make_corpus(tmp_path / "two", seed=2)
    config = write_config(tmp_path, one, train__steps=4)
    assert train_here(config)
    shutil.rmtree(one)
    shutil.copytree(two, one)
    refused(FAILED, "corpus changed", "step-000000004", command=("train", config, "train.steps=8"))


def test_read_only_run_folder(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    (tmp_path / "run").mkdir(mode=0o555)
    command = [GERMINAL, "train", str(config)]
    if os.geteuid() == 0:  # root may write everywhere, unless it gives that up
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == WRONG, done.stderr[-2000:]
    (error,) = done.stderr.splitlines()  # before any rank starts
    assert error.startswith(f"error: run_dir={tmp_path / 'run'}: Permission denied: set run_dir to")


@pytest.mark.parametrize("nproc", [1, 2])
def test_flipped_byte_in_a_shard(nproc: int, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, documents=20)
    shard = next((corpus / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    at = data.index(b"NUMPY") + 200  # in the token ids of the first document
    data[at] ^= 0x04
    shard.write_bytes(data)
    config = write_config(tmp_path, corpus)
    refused(FAILED, shard.name, "sample", command=("train", config, "--nproc", nproc))


def test_a_gradient_that_is_not_finite_is_a_fault_in_the_record(corpus: Path, tmp_path: Path) -> None:
    changes = {"optim__lr": 1e38, "optim__clip": 0, "optim__schedule": "constant", "optim__warmup_steps": 0}
    config = write_config(tmp_path, corpus, **changes)
    done = refused(FAILED, "step 2", "not finite", "sequences 8 to 15", command=("train", config))
    assert done.count("not finite") == 1, "said once"
    (event,) = events(tmp_path / "run", "fault")
    assert event["step"] == 1 and "the weights are not finite" in event["reason"]


def test_more_than_the_memory_is_one_line(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    refused(
        FAILED, "out of memory", "data.seq_len", command=("train", config, "data.seq_len=1000000000000000")
    )


@pytest.mark.slow
def test_damage_in_held_out_is_left_out_under_quarantine(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, documents=60)
    shard = next((corpus / "heldout").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[data.index(b"NUMPY") + 200] ^= 0x04
    shard.write_bytes(data)
    changes = {"train__steps": 2, "train__eval_every": 1, "model__layers": 1}
    config = write_config(tmp_path, corpus, **changes)
    refused(FAILED, shard.name, "data.on_corrupt", command=("train", config))
    train(config, "data.on_corrupt=quarantine", "run_dir=" + str(tmp_path / "on"), nproc=2)
    (event,) = events(tmp_path / "on", "quarantine")
    assert event["shard"] == str(shard) and event["heldout"] == "made_up" and event["sample"]
    evals = [line["eval"] for line in records(tmp_path / "on" / "metrics.jsonl") if "eval" in line]
    assert len(evals) == 2 and evals[0]["made_up"]["bits_per_byte"] > 1


def test_every_checkpoint_damaged_ends_the_start_and_loses_no_line_of_the_record(
    corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, corpus, train__steps=4, checkpoint__every=0)
    assert train_here(config)
    state = newest(tmp_path / "run") / "state.json"
    data = bytearray(state.read_bytes())
    data[10] ^= 1
    state.write_bytes(data)
    before = records(tmp_path / "run/metrics.jsonl")
    refused(FAILED, "no checkpoint of this run verifies", "state.json", command=("train", config))
    assert records(tmp_path / "run/metrics.jsonl") == before

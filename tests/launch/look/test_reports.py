"""Commands that look at what is on disk: a corpus, a run's checkpoints; sound, and with a byte flipped."""

import json
from pathlib import Path
from typing import Any

import pytest
import webdataset

from launch import cli
from pictures import encoded, pixels, write_folders
from trainer.checkpoint import folder
from trainer.checkpoint.merge import Part
from trainer.checkpoint.pieces.files import FileEntry

Capture = pytest.CaptureFixture[str]


def document(capfd: Capture, *arguments: str, code: int = 0) -> Any:
    """What a command with --json prints: one JSON document."""
    assert cli.main([*arguments, "--json"]) == code
    return json.loads(capfd.readouterr().out)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def corpus(tmp_path: Path, capfd: Capture) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(12):
        (raw / f"text-{number}.txt").write_text(f"The {number}th text says {number * 'hello '}and ends.\n")
    out = tmp_path / "corpus"
    made = document(capfd, "prepare", str(raw), "--out", str(out), "--tokenizer", "bytes", "--workers", "1")
    assert made["train"]["documents"] == 12
    assert made["counts"]["read"][0] == 12
    return out


def test_prepare_again_says_that_it_was_done(corpus: Path, capfd: Capture) -> None:
    again = ["prepare", str(corpus.parent / "raw"), "--out", str(corpus), "--tokenizer", "bytes"]
    assert cli.main([*again, "--workers", "1"]) == 0
    assert "was complete already, nothing done" in capfd.readouterr().out


def test_inspect_counts_and_verify_is_satisfied(corpus: Path, capfd: Capture) -> None:
    (inspected,) = document(capfd, "data", "inspect", str(corpus), "--seq-len", "16")["corpora"]
    assert inspected["documents"] == 12
    assert inspected["packing"]["cut"]["seq_len"] == 16
    assert document(capfd, "data", "verify", str(corpus)) == {"sound": True, "findings": []}
    assert cli.main(["data", "inspect", str(corpus), "--seq-len", "16"]) == 0
    assert cli.main(["data", "verify", str(corpus)]) == 0
    out = capfd.readouterr().out
    assert "packing: best_fit" in out
    assert "sound: every byte" in out


def test_inspect_says_how_the_classes_are_filled(tmp_path: Path, capfd: Capture) -> None:
    """Of pictures alone nothing is said of tokens but that there are none."""
    write_folders(tmp_path / "in", ("cat",), 3)
    write_folders(tmp_path / "in", ("dog",), 1)
    (tmp_path / "in" / "loose.png").write_bytes(encoded(pixels(99)))
    out = tmp_path / "corpus"
    document(capfd, "prepare", str(tmp_path / "in"), "--out", str(out), "--workers", "1")
    (inspected,) = document(capfd, "data", "inspect", str(out))["corpora"]
    assert inspected["class_documents"] == {"cat": 3, "dog": 1}
    assert cli.main(["data", "inspect", str(out)]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "classes 2, of 1 (dog) to 3 (cat) documents without a class 1" in said
    assert "bytes per token" not in said and "tokens a document" not in said


def test_a_flipped_byte_of_a_shard_is_named(corpus: Path, capfd: Capture) -> None:
    (shard,) = corpus.glob("*.tar")
    flip(shard, shard.read_bytes().index(b"\x93NUMPY") + 130)
    report = document(capfd, "data", "verify", str(corpus), code=1)
    assert not report["sound"]
    assert {finding["file"] for finding in report["findings"]} == {str(shard)}
    assert cli.main(["data", "verify", str(corpus)]) == 1
    assert "damaged" in capfd.readouterr().out


def test_a_sequence_is_traced_to_its_text(corpus: Path, capfd: Capture) -> None:
    config = corpus.parent / "run.yaml"
    config.write_text(
        f"model: {{vocab: 512}}\ndata: {{sources: [{{path: {corpus}}}], seq_len: 16}}\n"
        "train: {global_batch: 4, micro_batch: 2}\n"
    )
    found = document(capfd, "data", "inspect", str(config), "--sequence", "5")
    assert (found["sequence"], found["steps"]) == (5, [2, 2])
    assert "".join(piece["text"] for piece in found["pieces"])
    assert cli.main(["data", "inspect", str(config), "--sequence", "5"]) == 0
    out = capfd.readouterr().out
    assert ["read", "by", "step", "2"] in [line.split() for line in out.splitlines()]
    assert found["pieces"][0]["meta"]["path"] in out
    assert found["followed_tokens"] == 16 and "tokens that another follows 16" in " ".join(out.split())


def test_a_picture_without_a_text_is_traced_to_its_sample(tmp_path: Path, capfd: Capture) -> None:
    with webdataset.TarWriter(str(tmp_path / "in.tar")) as tar:
        tar.write({"__key__": "0007", "png": encoded(pixels(1))})
    out = tmp_path / "corpus"
    document(capfd, "prepare", str(tmp_path / "in.tar"), "--out", str(out), "--workers", "1")
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {kind: vision, image_size: 8, patch_size: 4, hidden: 8, heads: 1, layers: 1, head: pixels}\n"
        "objective: {kind: masked_images, mask_patch: 4}\n"
        f"data: {{sources: [{{path: {out}}}], seq_len: 4, packing: one, image_size: 8}}\n"
        "train: {global_batch: 4, micro_batch: 2}\n"
    )
    assert cli.main(["data", "inspect", str(config), "--sequence", "5"]) == 0
    said = capfd.readouterr().out
    assert "(in.tar, key 0007): no text\n" in said and "tokens" not in said


def test_runs_that_have_not_begun_are_left_out_of_a_plot(tmp_path: Path, capfd: Capture) -> None:
    folders = [tmp_path / name for name in ("one", "refused")]
    for made in folders:
        made.mkdir()
        (made / "config.yaml").write_text("name: x\n")
        (made / "events.jsonl").write_text("")
    step = {"step": 1, "sequences": 4, "tokens": 64, "loss": 2.0, "grad_norm": 1.0, "lr": 0.1}
    (folders[0] / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    picture = tmp_path / "plot.png"
    assert cli.main(["plot", *map(str, folders), "--out", str(picture)]) == 0
    assert f"{folders[1]}: left out, it has no metrics.jsonl" in capfd.readouterr().err and picture.exists()
    assert cli.main(["plot", str(folders[1]), str(folders[1]), "--out", str(picture)]) == 1
    assert "none of 2 folders has a metrics.jsonl" in capfd.readouterr().err


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at steps 10 and 20 that hold a state and no tensor."""
    root = tmp_path / "run" / "checkpoints"
    for step in (10, 20):
        staged = root / f".tmp-{step}"
        staged.mkdir(parents=True)
        (staged / folder.STATE).write_text(json.dumps({"step": step}))
        entry = FileEntry((staged / folder.STATE).stat().st_size, folder.hash_file(staged / folder.STATE))
        part = Part({folder.STATE: entry}, {})
        folder.commit(staged, folder.step_folder(root, step), [part], step=step, sequences=step * 8)
    return tmp_path / "run"


def test_checkpoints_are_listed_newest_first(run: Path, capfd: Capture) -> None:
    listed = document(capfd, "checkpoint", "list", str(run))["checkpoints"]
    assert [(entry["step"], entry["sequences"]) for entry in listed] == [(20, 160), (10, 80)]
    assert document(capfd, "checkpoint", "verify", str(run))["sound"]
    assert cli.main(["checkpoint", "list", str(run)]) == 0
    assert "2 checkpoints" in capfd.readouterr().out


def test_a_damaged_checkpoint_is_told_from_a_sound_one(run: Path, capfd: Capture) -> None:
    flip(run / "checkpoints/step-000000020" / folder.STATE, 3)
    report = document(capfd, "checkpoint", "verify", str(run), code=1)
    assert [(entry["step"], entry["sound"]) for entry in report["checkpoints"]] == [(20, False), (10, True)]
    assert folder.STATE in report["checkpoints"][0]["error"]
    assert document(capfd, "checkpoint", "verify", str(run), "--step", "10")["sound"]
    assert cli.main(["checkpoint", "verify", str(run), "--step", "11"]) == 2
    assert "[20, 10]" in capfd.readouterr().err


def test_a_checkpoint_whose_manifest_is_damaged_is_listed_as_such(run: Path, capfd: Capture) -> None:
    flip(run / "checkpoints/step-000000010/MANIFEST.json", 5)
    listed = document(capfd, "checkpoint", "list", str(run))["checkpoints"]
    assert "damaged" in listed[1]["error"]
    assert cli.main(["checkpoint", "list", str(run)]) == 0
    assert "damaged:" in capfd.readouterr().out


def test_a_run_folder_that_is_not_there_names_its_neighbour(run: Path, capfd: Capture) -> None:
    assert cli.main(["checkpoint", "list", str(run.with_name("rnu"))]) == 2
    assert f"did you mean {run}?" in capfd.readouterr().err

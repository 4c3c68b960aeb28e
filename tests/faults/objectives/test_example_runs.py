"""Each example in configs/objectives, made small: killed and run again, and all that any run can have."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.corpus.columns import MEDIA
from data.corpus.index import read_index
from data.corpus.manifest import OFFSET, read_manifest
from data.pictures import decoders
from data.stream import tracing
from examples import BATCH, NAMES, STEPS, corpus_of, example, make_small_corpus, small
from launch import cli
from trainer.config import reading
from whole_runs import environment, germinal, newest, records, train_here

KILLER = Path(__file__).parents[2] / "helpers/programs/killer.py"
RECALLS = ("recall@1", "recall@5", "recall@10")
MEASURES = {
    "causal_lm": ("bits_per_byte",),
    "classification": ("top_1", "f1"),
    "clip": RECALLS,
    "contrastive": RECALLS,
    "masked_lm": ("masked_accuracy",),
    "next_sentence": ("masked_accuracy", "next_sentence_loss", "next_sentence_accuracy"),
    "siglip": RECALLS,
    "simclr": RECALLS,
    "text_classification": ("top_1", "f1"),
}
"""What an evaluation says of an example besides its loss."""


# All but one are slow: what is done here is tested for single objectives in fast tests of other files.
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "siglip" else pytest.mark.slow) for name in NAMES]
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the small corpora, in which every test of this file runs."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(autouse=True)
def _here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(decoders, "_PAUSE_SECONDS", 0.0)


def undisturbed_run(name: str, workplace: Path) -> Path:
    """The folder of a run of an example that nothing happened to; several tests look at one."""
    make_small_corpus(corpus_of(name), workplace)
    if not (run := workplace / "runs" / name).exists():
        assert train_here(example(name), *small(run))
    return run


@each
def test_killed_and_run_again_is_bit_identical(name: str, workplace: Path, tmp_path: Path) -> None:
    undisturbed, killed = undisturbed_run(name, workplace), tmp_path / "killed"
    command = [sys.executable, "-P", str(KILLER), "step", "6", str(example(name)), *small(killed)]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=180, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert newest(killed).name == "step-000000003"
    assert train_here(example(name), *small(killed))
    for file in ("metrics.jsonl", "ledger.jsonl"):
        assert records(killed / file) == records(undisturbed / file)
    read = [number for line in records(killed / "ledger.jsonl") for number in line["sequences"]]
    assert read == list(range(STEPS * BATCH))
    saved = [path for path in newest(undisturbed).iterdir() if path.suffix == ".safetensors"]
    assert saved and newest(undisturbed).name == f"step-{STEPS:09d}"
    for path in saved:
        assert (newest(killed) / path.name).read_bytes() == path.read_bytes()
    states = [json.loads((newest(run) / "state.json").read_text()) for run in (killed, undisturbed)]
    for key in ("state", "scalars", "identity"):
        assert states[0][key] == states[1][key]


@each
def test_its_record_has_its_figures_and_its_unit(name: str, workplace: Path) -> None:
    lines = (undisturbed_run(name, workplace) / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    (held,) = lines[-1]["eval"].values()
    assert tuple(held) == ("loss", *MEASURES.get(name, ()))
    assert all(math.isfinite(value) for value in held.values())
    shares = [value for key, value in held.items() if key.endswith(("accuracy", "_1")) or "recall" in key]
    assert all(0 <= share <= 1 for share in shares)
    unit = "images" if reading.load(example(name)).data.image_size else "tokens"
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == STEPS
    for step in steps:
        assert [key for key in step if key.endswith("_per_second")] == [f"{unit}_per_second"]
        assert step[f"{unit}_per_second"] > 0


@each
def test_a_sequence_is_shown_with_its_picture(
    name: str, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, png = undisturbed_run(name, workplace), tmp_path / "seen.png"
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(run), "--sequence", "13", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == [2, 2] and all(piece["text"] for piece in found["pieces"])
    cfg = reading.load(run).data
    assert ("partner" in found, len(found["pieces"]) == 2) == (cfg.partners, cfg.packing == "pair")
    code = cli.main(["data", "inspect", str(run), "--sequence", "13", "--out", str(png)])
    if not cfg.image_size:
        assert code == 2 and "the run reads none" in capsys.readouterr().err
        return
    assert code == 0
    assert Image.open(png).size == (cfg.image_views * cfg.image_size, cfg.image_size)


def damage(corpus: Path, shard: str, document: int, *, picture: bool) -> int:
    """Flip a bit of a document's ids, or of its picture; return the first byte of these."""
    manifest = read_manifest(corpus)
    (entry,) = (entry for entry in manifest.shards if entry.file == shard)
    index = read_index(corpus / entry.index_file, entry, manifest.index_rows)
    at = int(index[manifest.row(MEDIA[0]) if picture else OFFSET, document])
    raw = np.fromfile(corpus / shard, dtype=np.uint8)
    raw[at + 4] ^= 1
    raw.tofile(corpus / shard)
    return at


@each
def test_damage_stops_it_by_name_or_is_quarantined(name: str, workplace: Path, tmp_path: Path) -> None:
    clean = undisturbed_run(name, workplace)
    cfg = reading.load(example(name), small(clean))
    corpus = tmp_path / "train"
    shutil.copytree(cfg.data.sources[0].path, corpus)
    # Of the fourth step: those before it are as without the damage.
    piece = tracing.sequence(cfg.data, 3 * BATCH + 5, seed=cfg.seed, global_batch=BATCH)["pieces"][0]
    offset = damage(corpus, piece["shard"], piece["document"], picture=cfg.data.image_size > 0)
    where = f"data.sources=[{{path: {corpus}, name: {cfg.data.sources[0].name}}}]"

    with pytest.raises(RuntimeError) as stopped:
        train_here(example(name), *small(tmp_path / "stopped", where))
    named = f"shard {corpus / piece['shard']}: sample {piece['sample']!r}, byte {offset}: "
    assert named in str(stopped.value) and "\n" not in str(stopped.value)

    run = tmp_path / "quarantined"
    assert train_here(example(name), *small(run, where, "data.on_corrupt=quarantine"))
    listed = records(run / "quarantine.jsonl")
    assert 3 * BATCH + 5 in [line["sequence"] for line in listed]
    for line in listed:
        assert (line["shard"], line["sample"], line["offset"]) == (
            str(corpus / piece["shard"]),
            piece["sample"],
            offset,
        )
    losses, expected = (
        {line["step"]: line["loss"] for line in records(folder / "metrics.jsonl") if "loss" in line}
        for folder in (run, clean)
    )
    first = min(line["step"] for line in listed)
    assert first <= 4 and len(losses) == STEPS
    for step in range(1, first + 1):
        assert (losses[step] == expected[step]) == (step < first), step


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_compute_what_one_does(name: str, workplace: Path, tmp_path: Path) -> None:
    make_small_corpus(corpus_of(name), workplace)
    arguments = (*small(tmp_path / "run"), "--nproc", 2, "--steps", 3, "parallel.zero=3")
    done = germinal("verify", example(name), *arguments, cwd=workplace)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_deepspeed_engine_computes_the_same(name: str, workplace: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    expected = undisturbed_run(name, workplace)
    settings = small(tmp_path / "run", "parallel.engine=deepspeed", "parallel.zero=2")
    done = germinal("train", example(name), *settings, "--nproc", 2, cwd=workplace)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    lines = zip(records(tmp_path / "run/metrics.jsonl"), records(expected / "metrics.jsonl"), strict=True)
    for found, wanted in lines:
        assert found.keys() == wanted.keys()
        for key in {"step", "loss", "grad_norm", "tokens"} & wanted.keys():
            assert found[key] == pytest.approx(wanted[key], rel=1e-5), (wanted, found)
        for held, figures in wanted.get("eval", {}).items():
            assert found["eval"][held] == pytest.approx(figures, rel=1e-4)

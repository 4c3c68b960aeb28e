"""Text out of a run folder: sampling, context, characters, and what is said when there is nothing to load."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from data.config import DataConfig, Source
from data.tokenizer import tokenizer as tokenizers
from parallel.engine import Chunk
from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.manifest import FileEntry, digest
from trainer.checkpoint.store import write_part
from trainer.config import run_config as configs
from trainer.config.run_config import RunConfig
from trainer.generate import generate as generating
from trainer.generate.generate import continue_text, decode, generate, main, sample
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder
from trainer.state import Identity

VOCAB = 257


def model_config(tied: bool = False) -> DecoderConfig:
    return DecoderConfig(layers=2, hidden=32, heads=4, kv_heads=2, vocab=VOCAB + 7, tie_embeddings=tied)


def drawn(cfg: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)  # decided enough that ties are out of reach
    return model


def uncached(model: Decoder, prompt: Sequence[int], count: int, context: int) -> list[int]:
    """The likeliest tokens by reading everything anew for each, with the same renewal of the context."""
    ids, seen = list(prompt), min(len(prompt), context)
    for _ in range(count):
        seen = context // 2 if seen > context else seen
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[-seen:]]))[0, -1].argmax()))
        seen += 1
    return ids[len(prompt) :]


@pytest.mark.parametrize("context", [64, 16, 5])
@pytest.mark.parametrize("prompt", [[0], list(range(1, 12))])
def test_the_cache_changes_nothing(context: int, prompt: list[int]) -> None:
    model = drawn(model_config())
    got = list(generate(model, prompt, max_tokens=40, context=context, temperature=0))
    assert got == uncached(model, prompt, 40, context)
    assert len(set(got)) > 3


def test_a_seed_decides_and_the_vocabulary_bounds() -> None:
    model = drawn(model_config())

    def run(seed: int) -> list[int]:
        return list(generate(model, [0], max_tokens=60, context=32, temperature=2.0, seed=seed, vocab=9))

    assert run(1) == run(1) != run(2)
    assert max(run(1)) < 9


def test_generation_ends_at_the_stop_id() -> None:
    model = drawn(model_config())
    ids = list(generate(model, [0], max_tokens=30, context=64, temperature=0))
    stop = ids[7]
    assert (
        list(generate(model, [0], max_tokens=30, context=64, temperature=0, stop=stop))
        == ids[: ids.index(stop)]
    )


def drawn_shares(logits: Tensor, temperature: float, top_p: float, draws: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = [sample(logits, temperature, top_p, generator) for _ in range(draws)]
    return torch.bincount(torch.tensor(ids), minlength=len(logits)) / draws


def test_sampling_follows_temperature_and_top_p() -> None:
    probabilities = torch.tensor([0.1, 0.5, 0.15, 0.25])
    logits = probabilities.log() + 3.0
    assert torch.allclose(drawn_shares(logits, 1.0, 1.0), probabilities, atol=0.03)
    assert torch.allclose(drawn_shares(logits, 0.5, 1.0), torch.softmax(2 * logits, 0), atol=0.03)
    assert torch.allclose(drawn_shares(logits, 1.0, 0.7), torch.tensor([0, 2 / 3, 0, 1 / 3]), atol=0.03)
    assert torch.equal(drawn_shares(logits, 1.0, 0.01, 50), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert sample(logits, 0.0, 1.0, torch.Generator()) == 1


@pytest.mark.parametrize("text", ["é", "🎉! ", "日本 e\u0301"])
def test_pieces_are_whole_characters(text: str) -> None:
    tokenizer = tokenizers.utf8_bytes()
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    pieces = [piece for piece in decode(iter(ids), tokenizer) if piece]
    assert pieces == list(text)
    # What never becomes a character is shown as such at the end, not lost.
    assert "".join(decode(iter(ids[:-1]), tokenizer)) == tokenizer.decode(ids[:-1])


def make_run(
    folder: Path,
    tied: bool = True,
    steps: Sequence[int] = (1, 2),
    eos: int = 0,
    identity: dict[str, Any] | None = None,
) -> Decoder:
    """A run folder as training leaves it; the newest checkpoint holds the returned model."""
    cfg = RunConfig(
        name=folder.name,
        model=model_config(tied),
        data=DataConfig(sources=[Source(path=str(folder / "no-corpus"))], seq_len=32),
        run_dir=str(folder),
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(configs.dump(cfg))
    (folder / "events.jsonl").touch()
    tokenizers.utf8_bytes().save(str(folder / "tokenizer.json"))
    sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    own = Identity(tokenizer={"sha256": sha256, "eos": eos}).to_json()
    state = json.dumps({"identity": own if identity is None else identity})
    model = drawn(cfg.model)
    for step in steps:
        tmp, final = folder / f".tmp-{step}", checkpoints.step_folder(folder / "checkpoints", step)
        tmp.mkdir()
        final.parent.mkdir(exist_ok=True)
        scale = 1.0 if step == steps[-1] else 0.5
        chunks = [
            Chunk(f"model.{name}", scale * p.detach(), tuple(p.shape), (0,) * p.ndim, owned=True)
            for name, p in model.named_parameters()
        ]
        part = write_part(tmp, 0, chunks)
        (tmp / checkpoints.STATE).write_text(state)
        part.files[checkpoints.STATE] = FileEntry(len(state), digest(state.encode()))
        checkpoints.commit(tmp, final, [part], step=step, sequences=step)
    return model


def test_a_checkpoint_that_is_removed_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention of a run that goes on training takes the newest one of a moment ago."""
    run = tmp_path / "run"
    make_run(run, steps=(2,))
    make_run(tmp_path / "later", steps=(3,))
    load, calls = generating.load_model, []

    def late(cfg: RunConfig, folder: Path, device: str) -> Decoder:
        calls.append(folder.name)
        if len(calls) == 1:
            newer = checkpoints.step_folder(tmp_path / "later" / "checkpoints", 3)
            os.rename(newer, checkpoints.step_folder(run / "checkpoints", 3))
            shutil.rmtree(folder)
        return load(cfg, folder, device)

    monkeypatch.setattr(generating, "load_model", late)
    assert "".join(continue_text(run, "ab", max_tokens=3)) is not None
    assert calls == ["step-000000002", "step-000000003"]
    flip_a_byte(next((run / "checkpoints").glob("step-*/*.safetensors")))
    with pytest.raises(RuntimeError, match="none of its 1 verifies"):
        continue_text(run, "ab", max_tokens=3)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("tied", "eos"), [(True, 0), (False, 0), (False, 7)])
def test_a_run_folder_continues_a_text(tmp_path: Path, tied: bool, eos: int) -> None:
    """The separator is the one that the corpus had, whatever the tokenizer's names say."""
    model = make_run(tmp_path / "run", tied, eos=eos)
    text = "".join(continue_text(tmp_path / "run", "def é", max_tokens=20, temperature=0))
    tokenizer = tokenizers.utf8_bytes()
    prompt = [eos, *tokenizer.encode("def é").ids]
    expected = generate(model, prompt, max_tokens=20, context=32, temperature=0, stop=eos, vocab=VOCAB)
    assert text == tokenizer.decode(list(expected)) and text


def test_an_older_checkpoint_can_be_asked_for(tmp_path: Path) -> None:
    make_run(run := tmp_path / "run")
    newest, older = ("".join(continue_text(run, "ab", step=step)) for step in (2, 1))
    assert "".join(continue_text(run, "ab")) == newest != older
    checkpoints.delete(checkpoints.step_folder(run / "checkpoints", 2))
    assert "".join(continue_text(run, "ab")) == older


@pytest.mark.parametrize("said", [{}, {"template": False}, {"template": True}])
def test_a_prompt_has_the_template_that_the_documents_had(tmp_path: Path, said: dict[str, bool]) -> None:
    """Checkpoints that do not say are of corpora that had none."""
    tokenizer = tokenizers.utf8_bytes()
    tokenizer.post_processor = TemplateProcessing(single="Z $A", special_tokens=[("Z", 58)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sha256 = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    own = Identity(tokenizer={"sha256": sha256, "eos": 0, **said}).to_json()
    model = make_run(tmp_path / "run", steps=(2,), identity=own)
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "run")
    prompt = [0, *([58] if said.get("template") else []), *tokenizers.utf8_bytes().encode("ab").ids]
    expected = generate(model, prompt, max_tokens=20, context=32, temperature=0, stop=0, vocab=VOCAB)
    text = "".join(continue_text(tmp_path / "run", "ab", max_tokens=20, temperature=0))
    assert text == tokenizer.decode(list(expected)) and text


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(path.read_text().replace('"a"', '"b"', 1))
    with pytest.raises(RuntimeError, match="is not the tokenizer that the run was trained with: sha256"):
        continue_text(tmp_path / "run", "ab", max_tokens=3)
    path.unlink()
    with pytest.raises(RuntimeError, match=r"tokenizer\.json is missing: restore it from the corpus"):
        continue_text(tmp_path / "run", "ab", max_tokens=3)


def test_a_checkpoint_that_does_not_name_its_tokenizer(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=(2,), identity={})
    with pytest.raises(
        RuntimeError, match=r"step-000000002 does not say which tokenizer .*train the run further"
    ):
        continue_text(tmp_path / "run", "ab", max_tokens=3)


def test_a_reader_that_has_seen_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", steps=(2,))
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert main([str(tmp_path / "run"), "--prompt", "ab", "--max-tokens", "3"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_the_command_prints_utf8_and_passes_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    newest = checkpoints.step_folder(tmp_path / "run" / "checkpoints", 2)
    flip_a_byte(newest / "rank-00000.safetensors")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer.generate.generate",
            tmp_path / "run",
            "--prompt",
            "é",
            "--max-tokens",
            "5",
        ],
        capture_output=True,
        timeout=120,
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").startswith("é")
    assert done.stderr.decode().startswith("passed over step 2: ") and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "nowhere: no such run folder"),
        (["empty"], 1, "has no checkpoint to generate from"),
        (["empty", "--step", "4"], 2, "--step 4: empty has no checkpoint of that step; those there: []"),
        (["damaged", "--step", "3"], 1, "damaged: its bytes"),
        (["damaged"], 1, "none of its 1 verifies"),
        (["empty", "--top-p", "0"], 2, "--top-p 0.0"),
        (["empty", "--temperature", "-1"], 2, "--temperature -1.0"),
        (["empty", "--max-tokens", "0"], 2, "--max-tokens 0"),
        (["empty", "--seed", "9" * 20], 2, "--seed 9"),
        (["empty", "--prompt", "ab\udcff"], 2, "--prompt: not UTF-8 from character 2 on"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "empty", steps=())
    make_run(tmp_path / "damaged", steps=(3,))
    flip_a_byte(checkpoints.step_folder(tmp_path / "damaged" / "checkpoints", 3) / "rank-00000.safetensors")
    assert main(arguments) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last

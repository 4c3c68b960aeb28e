"""`germinal export`: folders that transformers loads, the same bytes from any layout."""

import json
import os
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from ranks import RankPools
from runs import Case, build, model_of
from stock_models import DECODERS, as_ours, stock, tokens
from trained_runs import make_trained_run
from trainer.checkpoint import folder as checkpoints
from trainer.checkpoint.pieces.files import FileEntry, digest
from trainer.checkpoint.store import write_part
from trainer.evaluate.calibration import calibrate
from trainer.evaluation.bias import Bias
from trainer.evaluation.report import document
from trainer.export import export as exports
from trainer.export.export import export
from trainer.first_weights.checkpoint_source import CheckpointSource
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.huggingface import choose
from trainer.models.decoder.config import DecoderConfig
from trainer.models.decoder.decoder import Decoder

SIZES: dict[str, Any] = {"layers": 2, "hidden": 48, "heads": 4, "vocab": 300}
MODELS = {
    "gpt2": DecoderConfig(
        **SIZES,
        norm="layer",
        activation="gelu_tanh",
        attention_bias="all",
        mlp_bias=True,
        positions="learned",
        max_positions=40,
        tie_embeddings=True,
    ),
    "llama2": DecoderConfig(**SIZES),
    "llama3": DecoderConfig(
        **SIZES,
        kv_heads=2,
        rope_theta=500000.0,
        rope_scaling="llama3",
        rope_factor=4.0,
        rope_original_positions=24,
    ),
    "linear_rope": DecoderConfig(**SIZES, rope_scaling="linear", rope_factor=2.0, rope_theta=100.0),
    "qwen2": DecoderConfig(**SIZES, kv_heads=2, attention_bias="qkv", tie_embeddings=True),
    "qwen2_windows": DecoderConfig(**SIZES, attention_bias="qkv", window=5, global_every=2),
    "qwen3": DecoderConfig(**SIZES, kv_heads=2, head_dim=20, qk_norm=True),
    "mistral": DecoderConfig(**SIZES, kv_heads=2, head_dim=16, window=5),
}


def made(folder: Path, cfg: DecoderConfig) -> nn.Module:
    """A run whose norms and biases are not as they start, where a missing one would not be seen."""
    torch.manual_seed(0)
    drawn = Decoder(cfg).state_dict()
    for tensor in drawn.values():
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
    return make_trained_run(folder, model=cfg, weights=drawn)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_the_stock_class_are_ours(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours = made(tmp_path / "run", MODELS[name]).eval()
    done = export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=40_000)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs).__name__ == done.architecture == choose.for_export(MODELS[name], 32)[0].architecture
    assert not any(report.values()), report
    with torch.no_grad():
        found, expected = theirs.eval()(tokens()).logits, ours(tokens())
    assert float((found - expected).abs().max()) <= 1e-5
    assert float(expected.abs().max()) > 0.1
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == 0


@pytest.mark.parametrize("name", MODELS)
def test_an_export_that_is_imported_has_the_same_bits(name: str, tmp_path: Path) -> None:
    made(tmp_path / "run", MODELS[name])
    export(tmp_path / "run", tmp_path / "out", step=2, dtype="fp32", shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    back = HuggingFaceSource(tmp_path / "out")
    first = CheckpointSource(tmp_path / "run" / "checkpoints" / "step-000000002", MODELS[name])
    assert back.parameters == first.parameters
    for name_, shape in first.parameters.items():
        nowhere = [0] * len(shape)
        assert torch.equal(back.read(name_, nowhere, shape), first.read(name_, nowhere, shape)), name_


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_a_stock_folder_that_goes_through_a_run_comes_back(name: str, tmp_path: Path) -> None:
    """save_pretrained → model.init_from → checkpoint → export: every tensor as it was."""
    from safetensors.torch import load_file

    cls, config, keys = DECODERS[name]
    theirs = stock(cls, config, keys | {"vocab_size": 300})
    theirs.save_pretrained(tmp_path / "stock")  # type: ignore[operator]
    source = HuggingFaceSource(tmp_path / "stock")
    assert isinstance(source.model, DecoderConfig)
    weights = {n: source.read(n, [0] * len(s), s).clone() for n, s in source.parameters.items()}
    make_trained_run(tmp_path / "run", model=source.model, weights=weights)
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    before = load_file(tmp_path / "stock" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def checkpoint(context: Any, case: Case, root: Path) -> None:
    """What every rank does to save a new engine's state."""
    engine = build(case, context.rank, context.world)
    draft = root / ".tmp-draft"
    draft.mkdir(exist_ok=True, parents=True)
    parts: list[Any] = [write_part(draft, context.rank, engine.chunks())]
    if context.world > 1:
        mine, parts = parts[0], [None] * context.world
        dist.all_gather_object(parts, mine)
    if context.rank == 0:
        state = (root.parent / "state.json").read_bytes()
        (draft / checkpoints.STATE).write_bytes(state)
        parts[0].files[checkpoints.STATE] = FileEntry(len(state), digest(state))
        checkpoints.commit(draft, checkpoints.step_folder(root, 3), parts, step=3, sequences=24)
    if context.world > 1:
        dist.barrier()
    engine.close()


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "pp-tp": (4, {"pp": 2, "tp": 2}),
    "zero3": (2, {"zero": 3}),
    "deepspeed3": (2, {"engine": "deepspeed", "zero": 3}),
}
GPT2 = vars(MODELS["gpt2"]) | {"layers": 4, "hidden": 32, "vocab": 128, "kv_heads": 0, "qk_norm": False}


@pytest.mark.parametrize("layouts", ["alone pp-tp", pytest.param(" ".join(LAYOUTS), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "model", [pytest.param({"tie_embeddings": True}, marks=pytest.mark.slow), GPT2], ids=["qwen3", "gpt2"]
)
def test_any_layouts_checkpoint_gives_the_same_bytes(
    model: dict[str, Any], layouts: str, ranks: RankPools, tmp_path: Path
) -> None:
    folders: dict[str, dict[str, bytes]] = {}
    for layout, (world, parallel) in ((name, LAYOUTS[name]) for name in layouts.split()):
        case = Case(parallel=parallel, model=model, micro_batch=1 if "pp" in parallel else 2)
        run = tmp_path / layout / "run"
        run.parent.mkdir()
        made(run, model_of(case))  # type: ignore[arg-type]
        state = next((run / "checkpoints").glob("*/state.json")).read_bytes()
        (run / "state.json").write_bytes(state)
        ranks(world).run(checkpoint, case, run / "checkpoints")
        export(run, tmp_path / layout / "out", step=3, dtype="bf16", shard_bytes=30_000)
        folders[layout] = {file.name: file.read_bytes() for file in (tmp_path / layout / "out").iterdir()}
    assert len(folders["alone"]) > 8
    for files in folders.values():
        assert files.keys() == folders["alone"].keys()
        assert [name for name in files if files[name] != folders["alone"][name]] == []


def test_half_precision_is_the_nearest_number(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    ours = made(tmp_path / "run", MODELS["llama2"])
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="bf16", shard_bytes=10**9)
    own = dict(ours.named_parameters())
    found = as_ours(MODELS["llama2"], load_file(tmp_path / "out" / "model.safetensors"))
    assert all(torch.equal(found[name], own[name].detach().bfloat16()) for name in own)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_value_that_half_precision_does_not_hold_is_named(tmp_path: Path) -> None:
    weights = {n: p.detach().clone() for n, p in made(tmp_path / "a", MODELS["llama2"]).named_parameters()}
    weights["layers.1.mlp.w1.weight"][3, 4] = 1e6
    make_trained_run(tmp_path / "run", model=MODELS["llama2"], weights=weights)
    message = r"^tensor model\.layers\.1\.mlp\.gate_proj\.weight: a value is not finite as fp16: export with"
    with pytest.raises(RuntimeError, match=message):
        export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp16", shard_bytes=10**9)
    assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == []
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="bf16", shard_bytes=10**9)


def cells(text: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is called `first`."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} "))
    body = takewhile(lambda line: line.startswith("|"), lines[at + 2 :])
    split = ([cell.strip() for cell in line.strip("|").split("|")] for line in body)
    return {name: rest for name, *rest in split}


def test_the_card_has_the_tables_of_an_evaluation_of_that_step(tmp_path: Path) -> None:
    """Figures, calibration and bias, as `germinal evaluate --out` writes them."""
    made(run := tmp_path / "run", MODELS["llama2"])
    answered = calibrate(np.array([[0.9, 0.1], [0.7, 0.3]]), np.array([0, 1])).record()
    bias = Bias(pairs=3, templates=2, difference=0.5, low=0.25, high=0.75)
    entry: dict[str, Any] = {
        "run": str(run),
        "step": 2,
        "sets": {"prose": {"loss": 4.5, "documents": 7}},
        "choices": {"quiz": {"shots": 0, **answered}},
        "bias": {"pronouns": bias.record() | bias.counts()},
        "data": [{"name": "not told twice"}],
    }
    (file := tmp_path / "found.json").write_text(json.dumps(document([{**entry, "step": 1}, entry])))
    options: dict[str, Any] = {"dtype": "fp32", "shard_bytes": 10**9, "evaluation": file}
    export(run, tmp_path / "out", step=None, **options)
    text = (tmp_path / "out" / "README.md").read_text()
    assert cells(text, "set") == {"prose": ["4.5000", "7"]}
    assert cells(text, "questions of") == {"quiz": ["0", "0.4000"]}
    assert cells(text, "confidence") == {"0.67 to 0.73": ["1", "0.7000", "0.0000"],
                                         "0.87 to 0.93": ["1", "0.9000", "1.0000"]}  # fmt: skip
    assert cells(text, "pairs of") == {"pronouns": ["0.5000", "0.2500", "0.7500", "3", "2", "yes"]}
    assert "not told twice" not in text

    file.write_text(json.dumps(document([{**entry, "step": 1}])))
    with pytest.raises(
        ValueError, match=r"^--evaluation .*: has step 1 of .*run, not step 2 of .*run: germinal"
    ):
        export(run, tmp_path / "again", step=None, **options)
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"^--evaluation .*: is not what germinal evaluate .*run --out FILE"):
        export(run, tmp_path / "again", step=None, **options)
    assert not (tmp_path / "again").exists()


def test_the_card_says_what_proves_which_model_it_is(tmp_path: Path) -> None:
    made(tmp_path / "run", MODELS["llama2"])
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.25}\n'
        '{"step": 2, "eval": {"prose": {"loss": 4.5, "bits_per_byte": 2.125}}, '
        '"bias": {"pronouns": {"difference": 0.5, "low": 0.25, "high": 0.75}}}\n{"step": 9, "loss": 1.0}\n'
    )
    done = export(tmp_path / "run", tmp_path / "out", step=2, dtype="fp32", shard_bytes=10**9)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Training loss of the last recorded step: 4.25 nats" in text
    assert cells(text, "set") == {"prose": ["4.5000", "2.1250"]}
    assert cells(text, "pairs of") == {"pronouns": ["0.5000", "0.2500", "0.7500"]}
    assert "minus that of the sentence with the other" in text and "## Evaluation" not in text
    assert f"| model.safetensors, xxh3_128 | `{done.written.files['model.safetensors']}` |" in text
    assert checkpoints.hash_file(tmp_path / "out" / "model.safetensors") in text
    assert "not there when this was exported" in text  # the corpus of this made-up run


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"step": 7}, ValueError, r"^--step 7: .* has no checkpoint of that step; those there: \[1, 2\]"),
    ({"out": "run"}, ValueError, r"^--out .*run: exists already, and nothing is overwritten"),
    ({"out": "run/config.yaml/b"}, ValueError, r"^--out .*b: .*config\.yaml: Not a directory: give a folder"),
    ({"run": "nowhere"}, ValueError, "nowhere: no such run folder"),
])  # fmt: skip
def test_what_cannot_be_exported_is_one_line(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    made(tmp_path / "run", MODELS["llama2"])
    options: dict[str, Any] = {"step": None, "dtype": "fp32", "shard_bytes": 10**9}
    places = {"run": tmp_path / change.pop("run", "run"), "out": tmp_path / change.pop("out", "out")}
    with pytest.raises(error, match=message):
        export(**places, **(options | change))


def test_a_model_that_no_architecture_computes_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "run", replace(MODELS["llama2"], logit_softcap=2.0))
    with pytest.raises(ValueError, match=r"model\.logit_softcap=2\.0, where \w+ has 0\.0$"):
        export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)


def test_the_draft_of_a_killed_export_is_in_nobodys_way(tmp_path: Path) -> None:
    """In containers the next process may have the same number."""
    made(tmp_path / "run", MODELS["llama2"])
    (tmp_path / f".tmp-out-{os.getpid()}").mkdir()
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_folder_that_another_program_makes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "run", MODELS["llama2"])
    write = exports.write_weights

    def slow(*args: Any, **kwargs: Any) -> Any:
        (tmp_path / "out").mkdir()
        return write(*args, **kwargs)

    monkeypatch.setattr(exports, "write_weights", slow)
    with pytest.raises(ValueError, match="was made meanwhile by another program"):
        export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "run"]

"""Adapters in PEFT's format: trained here, equal logits there, and the reverse."""

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from parallel.torch_engine.engine import TorchEngine
from parallel.world import runtime as runtimes
from stock_models import stock
from trainer.checkpoint import folder as folders
from trainer.config import reading
from trainer.export.command import main
from trainer.export.export import export
from trainer.run import assemble
from trainer.trained.adapter import write_adapter
from trainer.trained.weights import load_model
from whole_runs import events, make_corpus, train_here

SIZES = {"vocab_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
GPT2 = {
    "vocab_size": 288,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        SIZES | {"num_key_value_heads": 2, "intermediate_size": 48},
        {"target_modules": ["q_proj", "down_proj"], "alpha_pattern": {"down_proj": 5}},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2,
        {"target_modules": ["c_attn", "mlp.c_fc"], "rank_pattern": {"c_attn": 5}, "fan_in_fan_out": True},
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(family: str, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A stock model with random weights, and the folder that it is saved in."""
    cls, config, keys, _ = FAMILIES[family]
    model = stock(cls, config, keys)
    model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    return model, tmp_path / "base"


def config(folder: Path, corpus: Path, base: Path, **finetune: Any) -> Path:
    values = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "model": {"init_from": str(base)},
        "data": {"sources": [{"path": str(corpus / "train")}], "seq_len": 32},
        "optim": {"lr": 1.0e-2},
        "train": {"steps": 4, "global_batch": 8, "micro_batch": 4},
        "finetune": {"method": "lora"} | finetune,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


def tokens() -> Tensor:
    return torch.randint(288, (3, 20), generator=torch.Generator().manual_seed(0))


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits  # type: ignore[no-any-return]


def loaded(base: Path, adapter: Path, family: str) -> Any:
    import transformers
    from peft import PeftModel

    return PeftModel.from_pretrained(
        getattr(transformers, FAMILIES[family][0]).from_pretrained(base), adapter
    )


@pytest.mark.slow  # an export says the same of all targets
@pytest.mark.parametrize("targets", [["wq", "wv"], ["all"]])
def test_an_adapter_that_was_trained_here_gives_equal_logits_in_peft(
    targets: list[str], family: str, base: tuple[nn.Module, Path], corpus: Path, tmp_path: Path
) -> None:
    model, folder = base
    assert train_here(config(tmp_path, corpus, folder, rank=3, alpha=12, targets=targets))
    run = tmp_path / "run"
    checkpoint = folders.step_folder(run / "checkpoints", 4)
    cfg = reading.load(run)
    assert write_adapter(cfg, checkpoint, tmp_path / "adapter") == "PEFT"
    with torch.no_grad():
        ours = load_model(cfg, checkpoint, "cpu")(tokens())
    assert (ours - theirs(model)).abs().max() > 1e-2
    torch.testing.assert_close(
        theirs(loaded(folder, tmp_path / "adapter", family)), ours, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_is_the_adapter_or_the_merged_model(
    merge: bool,
    family: str,
    base: tuple[nn.Module, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = base
    assert train_here(config(tmp_path, corpus, folder, rank=3, targets=["all"]))
    run, out = tmp_path / "run", tmp_path / "out"
    synced: set[int] = set()
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino) or sync(fd))
    export(run, out, step=None, dtype="fp32", shard_bytes=40_000, merge=merge)
    assert {file.stat().st_ino for file in out.iterdir()} <= synced
    if not merge:
        with pytest.raises(ValueError, match=r"^--dtype bf16: an adapter alone is written as fp32: "):
            export(run, tmp_path / "bf16", step=None, dtype="bf16", shard_bytes=40_000)
    with torch.no_grad():
        ours = load_model(reading.load(run), folders.step_folder(run / "checkpoints", 4), "cpu")(tokens())
    there = loaded_base(out, family) if merge else loaded(folder, out, family)
    torch.testing.assert_close(theirs(there), ours, rtol=1e-5, atol=1e-5)
    assert (out / "germinal.json").is_file() != merge
    text, event = (out / "README.md").read_text(), events(run, "init")[0]
    for line in ("`finetune.method` | lora", "`finetune.rank` | 3", '`finetune.targets` | ["all"]'):
        assert f"| {line} |" in text
    assert f"| base | `{folder.parent.name}/{folder.name}` |" in text
    assert f"| base, hash | `{event['hash']}` |" in text and str(tmp_path) not in text
    assert ('PeftModel.from_pretrained(base, "FOLDER")' in text) != merge
    if not merge:
        assert main([str(run), "--out", str(tmp_path / "new" / "again"), "--shard-bytes", "9"]) == 0
        assert "--shard-size: of a whole model; an adapter alone is one file" in capsys.readouterr().out
        again = tmp_path / "new" / "again"
        assert all(file.read_bytes() == (again / file.name).read_bytes() for file in out.iterdir())


def test_an_adapter_of_peft_s_gives_equal_logits_here(
    family: str, base: tuple[nn.Module, Path], corpus: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    model, folder = base
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=8, **FAMILIES[family][3]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = theirs(adapted)
    ours = at_start(config(tmp_path, corpus, folder, adapter=str(tmp_path / "adapter")))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (expected - theirs(loaded_base(folder, family))).abs().max() > 1e-2


def loaded_base(folder: Path, family: str) -> Any:
    import transformers

    return getattr(transformers, FAMILIES[family][0]).from_pretrained(folder)


def at_start(path: Path) -> Tensor:
    """Logits of a run before its first step."""
    with ExitStack() as stack:
        run = assemble(reading.load(path), runtimes.start(env={"OMP_NUM_THREADS": "1"}), stack)
        assert isinstance(run.engine, TorchEngine)
        with torch.no_grad():
            return run.engine.stages[0](tokens())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_what_is_written_is_read_back_as_it_was(
    base: tuple[nn.Module, Path], corpus: Path, tmp_path: Path, family: str
) -> None:
    _, folder = base
    assert train_here(config(tmp_path, corpus, folder, rank=3, targets=["all"]))
    run = tmp_path / "run"
    checkpoint = folders.step_folder(run / "checkpoints", 4)
    write_adapter(reading.load(run), checkpoint, tmp_path / "adapter")
    with torch.no_grad():
        expected = load_model(reading.load(run), checkpoint, "cpu")(tokens())
    (again := tmp_path / "again").mkdir()
    ours = at_start(config(again, corpus, folder, adapter=str(tmp_path / "adapter")))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_bottleneck_adapters_are_kept_under_our_names(corpus: Path, tmp_path: Path) -> None:
    cls, configuration, keys, _ = FAMILIES["llama"]
    stock(cls, configuration, keys).save_pretrained(folder := tmp_path / "base")  # type: ignore[operator]
    assert train_here(config(tmp_path, corpus, folder, method="adapters", bottleneck=5))
    run = tmp_path / "run"
    checkpoint = folders.step_folder(run / "checkpoints", 4)
    assert write_adapter(reading.load(run), checkpoint, tmp_path / "adapter") == "germinal"
    with pytest.raises(ValueError, match="cannot be merged: export them apart"):
        export(run, tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9, merge=True)
    with torch.no_grad():
        expected = load_model(reading.load(run), checkpoint, "cpu")(tokens())
    (again := tmp_path / "again").mkdir()
    ours = at_start(config(again, corpus, folder, method="adapters", adapter=str(tmp_path / "adapter")))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def wrong(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_does_not_fit_is_one_line(corpus: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    cls, configuration, keys, _ = FAMILIES["llama"]
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    stock(cls, configuration, keys).save_pretrained(folder)  # type: ignore[operator]
    wide = stock(cls, configuration, keys | {"intermediate_size": 64})
    get_peft_model(wide, LoraConfig(r=3, target_modules=["q_proj", "down_proj"])).save_pretrained(adapter)
    path = config(tmp_path, corpus, folder, adapter=str(adapter))

    def refused(message: str, *overrides: str) -> None:
        with pytest.raises((ValueError, RuntimeError), match=re.escape(message)) as error:
            train_here(path, *overrides)
        assert "\n" not in str(error.value)

    refused("lora_A.weight is [3, 64], where this model's layer needs [3, 48]: an adapter for another base?")
    refused("holds neither adapter_config.json nor germinal.json", f"finetune.adapter={folder}")
    same = stock(cls, configuration, keys)
    get_peft_model(same, LoraConfig(r=3, target_modules=["q_proj"])).save_pretrained(adapter)
    refused("finetune.rank=2: the adapter", "finetune.rank=2")
    refused("none of this run's: add its layer to finetune.targets", "finetune.targets=[wv]")
    (adapter / "germinal.json").write_text(json.dumps({"base": {"hash": "0123"}}))
    refused("an adapter for another base: it was trained beside weights of the hash 0123")
    wrong(adapter, use_dora=True)
    refused("use_dora=True is not supported")
    wrong(adapter, peft_type="IA3")
    refused("peft_type='IA3': only LORA is read")

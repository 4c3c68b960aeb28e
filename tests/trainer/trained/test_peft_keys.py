"""Every key of PEFT's LoraConfig that changes an adapter: read, or refused by name; and heads of classes."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
from parallel.torch_engine.engine import TorchEngine
from parallel.world import runtime as runtimes
from stock_models import stock
from trainer.checkpoint import folder as folders
from trainer.config import reading
from trainer.export.export import export
from trainer.run import assemble
from trainer.trained.weights import load_model
from whole_runs import WORDS, train_here

SIZES = {"vocab_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
STOCK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES | {"num_key_value_heads": 2, "intermediate_size": 48}),
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        SIZES | {"intermediate_size": 64, "max_position_embeddings": 32, "num_labels": 3},
    ),
}
MODEL: dict[str, dict[str, Any]] = {"llama": {}, "bert": {"kind": "text_classes", "classes": 3}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)
    lines = (f"kind {number % 3},{' '.join(draw.choices(WORDS, k=6))}\n" for number in range(60))
    (folder / "texts.csv").write_text("label,text\n" + "".join(lines))
    prepare([str(folder / "texts.csv")], folder / "corpus", tokenizer="bytes", workers=1, progress=False,
            recipe=Recipe(label_field="label"))  # fmt: skip
    return folder / "corpus"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bases")
    for name, (cls, config, keys) in STOCK.items():
        stock(cls, config, keys).save_pretrained(home / name)  # type: ignore[operator]
    return home


def config(folder: Path, corpus: Path, bases: Path, name: str, **finetune: Any) -> Path:
    classes = name == "bert"
    values = {
        "name": "run",
        "run_dir": str(folder / "run"),
        "model": {"init_from": str(bases / name), **MODEL[name]},
        "objective": {"kind": "classification" if classes else "causal_lm"},
        "data": {"sources": [{"path": str(corpus)}], "seq_len": 32} | ({"packing": "one"} if classes else {}),
        "optim": {"lr": 1.0e-2},
        "train": {"steps": 4, "global_batch": 8, "micro_batch": 4},
        "finetune": {"method": "lora", **finetune},
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder / "run.yaml"


def tokens() -> Tensor:
    return torch.randint(1, 288, (3, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def theirs(model: Any) -> Tensor:
    return model.eval()(input_ids=tokens()).logits  # type: ignore[no-any-return]


@torch.no_grad()
def ours(model: Callable[..., Tensor], name: str) -> Tensor:
    if name == "llama":
        return model(tokens())
    places = torch.arange(20).expand(3, 20)
    first = (places == 0).float()[:, None]
    return model(tokens(), positions=places, documents=torch.zeros_like(places), weights=first)


def at_start(path: Path, name: str) -> Tensor:
    """Logits of a run before its first step."""
    with ExitStack() as stack:
        run = assemble(reading.load(path), runtimes.start(env={"OMP_NUM_THREADS": "1"}), stack)
        assert isinstance(run.engine, TorchEngine)
        return ours(run.engine.stages[0], name)


def adapted(bases: Path, name: str, **keys: Any) -> Any:
    """A stock model with PEFT's LoRA, none of whose matrices is zero."""
    import transformers
    from peft import LoraConfig, get_peft_model

    base = getattr(transformers, STOCK[name][0]).from_pretrained(bases / name)
    found = get_peft_model(base, LoraConfig(**{"r": 3, "lora_alpha": 8, **keys}))
    torch.manual_seed(1)
    for parameter_name, parameter in found.named_parameters():
        if "lora_B" in parameter_name or "modules_to_save" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    return found


READ: dict[str, tuple[str, dict[str, Any]]] = {
    "use_rslora": ("llama", {"use_rslora": True, "target_modules": ["q_proj"]}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"v_proj": 5, r"layers\.1\..*up_proj": 2},
            "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 3},
        },
    ),
    "patterns and use_rslora": (
        "llama",
        {
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"^model.layers.1.self_attn.v_proj": 6},
        },
    ),
    "a regular expression": ("llama", {"target_modules": r".*\d+\.(self_attn\.[qv]_proj|mlp\.down_proj)"}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "layers_to_transform": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "exclude_modules": ("llama", {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}),
    "a head": ("bert", {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}),
    "a head by its task": ("bert", {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "a head and its pooler": (
        "bert",
        {"target_modules": ["key"], "modules_to_save": ["classifier", "pooler"]},
    ),
    "all-linear beside a head": (
        "bert",
        {"target_modules": "all-linear", "exclude_modules": ["bert.pooler.dense"], "task_type": "SEQ_CLS"},
    ),
}
"""Keys of LoraConfig that are read, with the model that they are tried on."""


@pytest.mark.parametrize("key", READ)
def test_an_adapter_gives_equal_logits(key: str, corpus: Path, bases: Path, tmp_path: Path) -> None:
    name, keys = READ[key]
    model = adapted(bases, name, **keys)
    model.save_pretrained(tmp_path / "adapter")
    path = config(tmp_path, corpus, bases, name, adapter=str(tmp_path / "adapter"))
    expected = theirs(model)
    torch.testing.assert_close(at_start(path, name), expected, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert (theirs(model) - expected).abs().max() > 1e-2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bias": ({"bias": "lora_only"}, "bias='lora_only' is not supported"),
    "use_dora": ({"use_dora": True}, "use_dora=True is not supported"),
    "lora_bias": ({"lora_bias": True}, "lora_bias=True is not supported"),
    "trainable_token_indices": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices="),
    "init_lora_weights": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
    "an embedding": (
        {"target_modules": ["embed_tokens", "q_proj"]},
        "LoRA beside model.embed_tokens is not",
    ),
    "the vocabulary": ({"target_modules": ["q_proj", "lm_head"]}, "LoRA beside lm_head is not supported"),
    "a frozen module": (
        {"modules_to_save": ["embed_tokens"]},
        "modules_to_save=['embed_tokens']: model.",
    ),
    "a frozen norm": ({"modules_to_save": ["norm"]}, "modules_to_save=['norm']: model."),
}


@pytest.mark.parametrize("key", REFUSED)
def test_another_arithmetic_is_refused_by_its_key(
    key: str, corpus: Path, bases: Path, tmp_path: Path
) -> None:
    keys, message = REFUSED[key]
    adapted(bases, "llama", **({"target_modules": ["q_proj"]} | keys)).save_pretrained(tmp_path / "adapter")
    path = config(tmp_path, corpus, bases, "llama", adapter=str(tmp_path / "adapter"))
    with pytest.raises((ValueError, RuntimeError)) as error:
        train_here(path)
    assert message in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("exclude", [None, ["pooler.dense"]])
def test_berts_pooler_is_named_where_it_has_a_branch(
    exclude: list[str] | None, corpus: Path, bases: Path, tmp_path: Path
) -> None:
    """PEFT's `all-linear` means it, too; the key `finetune.targets`, which nobody gave, is not named."""
    keys = {"target_modules": "all-linear", "exclude_modules": exclude, "task_type": "SEQ_CLS"}
    adapted(bases, "bert", **keys).save_pretrained(tmp_path / "adapter")
    path = config(tmp_path, corpus, bases, "bert", adapter=str(tmp_path / "adapter"))
    if exclude:
        assert train_here(path)
        return
    with pytest.raises(ValueError, match=r"LoRA beside bert\.pooler\.dense is not supported"):
        train_here(path)


def test_a_head_that_was_trained_here_is_loaded_by_peft(corpus: Path, bases: Path, tmp_path: Path) -> None:
    import transformers
    from peft import PeftModel

    assert train_here(config(tmp_path, corpus, bases, "bert", rank=3, targets=["all"]))
    run, out = tmp_path / "run", tmp_path / "adapter"
    export(run, out, step=None, dtype="fp32", shard_bytes=10**9)
    model = load_model(reading.load(run), folders.step_folder(run / "checkpoints", 4), "cpu")
    base = transformers.BertForSequenceClassification.from_pretrained(bases / "bert")
    before = theirs(base)
    found = theirs(PeftModel.from_pretrained(base, out))
    torch.testing.assert_close(found, ours(model, "bert"), rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 1e-2
    again = config(tmp_path / "again", corpus, bases, "bert", adapter=str(out))
    torch.testing.assert_close(at_start(again, "bert"), found, rtol=1e-5, atol=1e-5)

"""Folders that `transformers` writes, read as our decoders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stock_models import DECODERS, SMALL, stock, tokens, write_folder
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.huggingface import choose
from trainer.huggingface.choose import of_config
from trainer.huggingface.families.registry import FAMILIES
from trainer.models.build import build_model
from trainer.models.decoder.config import DecoderConfig

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL}


def loaded(folder: Path) -> torch.nn.Module:
    source = HuggingFaceSource(folder)
    model = build_model(source.model)
    own = dict(model.named_parameters())
    assert own.keys() == source.parameters.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(source.read(name, [0] * parameter.ndim, parameter.shape))
    assert source.besides == []
    return model.eval()


@pytest.mark.parametrize("name", DECODERS)
def test_logits_after_import_are_theirs(name: str, tmp_path: Path) -> None:
    theirs = stock(*DECODERS[name])
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    with torch.no_grad():
        found, expected = loaded(tmp_path)(tokens()), theirs(tokens()).logits
    assert float((found - expected).abs().max()) <= 1e-5
    assert float(expected.abs().max()) > 0.1


def test_a_folder_of_the_model_without_its_head(tmp_path: Path) -> None:
    """AutoModel's names begin otherwise, as those of the published GPT-2 do; the head's table is the tied
    one.
    """
    theirs = stock(*DECODERS["gpt2"])
    theirs.transformer.save_pretrained(tmp_path)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        found = loaded(tmp_path)(tokens())
        assert float((found - theirs(tokens()).logits).abs().max()) <= 1e-5


def test_keys_of_older_versions(tmp_path: Path) -> None:
    """Before version 5: `rope_theta` beside `rope_scaling`, `torch_dtype`, and no `head_dim`."""
    scaling = {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    llama31 = LLAMA | {"rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}
    _, cfg = of_config(llama31, "config.json")
    assert cfg == DecoderConfig(
        layers=3,
        hidden=48,
        heads=4,
        kv_heads=2,
        head_dim=12,
        ffn_hidden=100,
        vocab=50,
        rope_theta=500000.0,
        rope_scaling="llama3",
        rope_factor=8.0,
        norm_eps=1e-6,
    )
    _, cfg = of_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "config.json")
    assert (cfg.rope_scaling, cfg.rope_factor, cfg.rope_theta) == ("linear", 2.0, 10000.0)
    _, cfg = of_config({"model_type": "qwen2", **SMALL, "use_sliding_window": False}, "config.json")
    assert cfg.window == 0


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
     "config.json: model_type='gemma2' (Gemma2ForCausalLM): this architecture is not supported: known are"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
     "config.json: rope_parameters: rope_type='yarn': not supported: known here: default, linear, llama3"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling: type='dynamic': not supported"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "attention_factor": 0.5}},
     "rope_parameters: attention_factor=0.5: not supported: the key is not known here"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: not supported: only None is"),
    ({"hidden_act": "relu"}, "hidden_act='relu': not supported: known here: silu"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config={'quant_method': 'gptq'}: not"),
    ({"logit_scale": 0.0625}, "logit_scale=0.0625: not supported: the key is not known here"),
    ({"num_attention_heads": "4"}, "num_attention_heads='4': not an integer of at least 1"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: no model has more than 10000 layers"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder=True: not supported"),
    ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ({"model_type": "gpt2", "activation_function": "relu"}, "activation_function='relu': not supported"),
    ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2}, "layer_types="),
])  # fmt: skip
def test_a_key_that_is_not_supported_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        of_config(LLAMA | change, "config.json")
    assert message in str(caught.value)


def test_switches_that_are_off_and_harmless_keys_are_passed_over() -> None:
    values = LLAMA | {"some_new_switch": False, "another": None, "attention_dropout": 0.1, "use_cache": True}
    assert of_config(values, "config.json")[1] == of_config(LLAMA, "config.json")[1]


@pytest.mark.parametrize("architecture", [family.architecture for family in FAMILIES])
def test_defaults_of_keys_that_are_left_out_are_theirs(architecture: str) -> None:
    """A folder that says nothing but its family describes the model that transformers makes of it."""
    import transformers

    family = next(one for one in FAMILIES if one.architecture == architecture)
    theirs = transformers.AutoConfig.for_model(family.model_type)
    _, expected = of_config(json.loads(theirs.to_json_string(use_diff=False)), "config.json")
    assert of_config({"model_type": family.model_type}, "config.json")[1] == expected


def test_what_no_architecture_has_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^no architecture .* does: model\.logit_softcap=2\.0, where \w+ has"
    ):
        choose.for_export(DecoderConfig(logit_softcap=2.0), 32)


def test_a_folder_of_the_cache_is_links_to_blobs(tmp_path: Path) -> None:
    """As `huggingface_hub` keeps what it has downloaded: snapshots/REVISION/NAME → ../../blobs/HASH."""
    write_folder(tmp_path / "plain", DecoderConfig(layers=1, hidden=48, heads=4, vocab=50))
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0f"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    source = HuggingFaceSource(snapshot)
    assert source.parameters["norm.weight"] == (48,)
    assert source.read("norm.weight", [0], [48]).isfinite().all()


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut_short(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])


def cut_in_the_header(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:50])


def only_pickles(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    (folder / "pytorch_model.bin").touch()


def integers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(shard).items()}, shard)


def twice(folder: Path) -> None:
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], folder / "model.safetensors")


def eights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(shard).items()}, shard)


def of_the_parent(folder: Path) -> None:
    rewrite(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": "../other.safetensors"})


@pytest.mark.parametrize(("damage", "error", "message"), [
    (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), RuntimeError, "missing, but model.saf"),
    (cut_short, RuntimeError, "its header describes"),
    (cut_in_the_header, RuntimeError, "not a safetensors file, or cut short in its header"),
    (only_pickles, ValueError, "its weights are pickles, which run code"),
    (twice, ValueError, "holds model.safetensors, which transformers reads, and model.saf"),
    (eights, ValueError, "is F8_E4M3: weights are F64, F32, F16, BF16; a quantised model is not read"),
    (integers, ValueError, "is I8: weights are F64, F32, F16, BF16"),
    (lambda folder: rewrite(folder / "config.json", vocab_size=51), RuntimeError,
     "tensor model.embed_tokens.weight is [50, 48], where config.json describes [51, 48]"),
    (of_the_parent, ValueError, "weight_map is no mapping of tensors to files of the folder"),
    (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json: not JSON"),
])  # fmt: skip
def test_a_damaged_folder_is_one_line(
    damage: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write_folder(folder, DecoderConfig(layers=1, hidden=48, heads=4, vocab=50))
    HuggingFaceSource(folder)
    damage(folder)
    with pytest.raises(error, match=r"^[^\n]*$") as caught:
        HuggingFaceSource(folder)
    assert message in str(caught.value)


PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": {"predict_special_tokens": True, "n_special": 0, "output_past": True},  # gpt2-medium, gpt2-xl
    "bert": {  # bert-base-chinese, bert-base-multilingual-cased
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
    },
    "llama": {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
}
"""Keys of published folders that the classes of transformers read nowhere."""


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_keys_of_published_folders_that_nothing_reads(model_type: str) -> None:
    plain = of_config({"model_type": model_type}, "config.json")
    assert of_config({"model_type": model_type} | PUBLISHED[model_type], "config.json") == plain


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_null_key_heads_are_as_many_as_heads(model_type: str) -> None:
    import transformers

    keys = {"model_type": model_type, "num_attention_heads": 4, "hidden_size": 32}
    keys |= {"num_key_value_heads": None}
    _, ours = of_config(keys, "config.json")
    assert isinstance(ours, DecoderConfig) and ours.key_value_heads == 4
    if model_type != "mistral":  # transformers 5 takes no null there, as versions before did
        assert transformers.AutoConfig.for_model(**keys).num_key_value_heads == 4

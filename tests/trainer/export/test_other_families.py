"""BERT, ModernBERT, ViT, CLIP and SigLIP: import and export against `transformers`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stock_models import stock, tokens
from trained_runs import make_trained_run
from trainer.export.export import export
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.huggingface.choose import of_config
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.towers.image_text_config import ImageTextConfig
from trainer.models.vision.config import VisionConfig
from trainer.objectives.contrastive_config import ClipConfig, SiglipConfig
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.objectives.picture_config import ClassificationConfig, MaskedImagesConfig

SEQ, ROWS, VOCAB, EOS = 10, 3, 300, 1
BLOCKS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}
PICTURE = {"image_size": 24, "patch_size": 8}
IDS = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)
TEXT = BLOCKS | {"vocab_size": VOCAB, "max_position_embeddings": SEQ, "eos_token_id": EOS, "pad_token_id": 0}
PICTURES = {"packing": "one", "image_size": 24}
CASES: dict[str, tuple[str, str, dict[str, Any], Any, dict[str, Any]]] = {
    "bert": (
        "BertForMaskedLM",
        "BertConfig",
        BLOCKS | {"vocab_size": VOCAB, "max_position_embeddings": 40},
        MaskedLMConfig(),
        {},
    ),
    "bert_pre_training": (
        "BertForPreTraining",
        "BertConfig",
        BLOCKS | {"vocab_size": VOCAB, "max_position_embeddings": 40},
        MaskedLMConfig(next_sentence=True),
        {"packing": "one", "partners": True},
    ),
    "modern_bert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        BLOCKS | IDS | {"vocab_size": VOCAB, "local_attention": 10, "global_attn_every_n_layers": 2},
        MaskedLMConfig(),
        {},
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        BLOCKS | PICTURE | {"num_labels": 7, "hidden_act": "gelu_pytorch_tanh"},
        ClassificationConfig(),
        PICTURES,
    ),
    "ijepa": (
        "IJepaForImageClassification",
        "IJepaConfig",
        BLOCKS | PICTURE | {"num_labels": 7},
        ClassificationConfig(),
        PICTURES,
    ),
    "vit_masked": (
        "ViTForMaskedImageModeling",
        "ViTConfig",
        BLOCKS | PICTURE | {"encoder_stride": 8},
        MaskedImagesConfig(mask_patch=8),
        PICTURES,
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": TEXT, "vision_config": BLOCKS | PICTURE, "projection_dim": 16},
        ClipConfig(),
        PICTURES | {"seq_len": SEQ},
    ),
    "siglip": (
        "SiglipModel",
        "SiglipConfig",
        {"text_config": TEXT, "vision_config": BLOCKS | PICTURE},
        SiglipConfig(),
        PICTURES | {"seq_len": SEQ},
    ),
}


def pixels() -> Tensor:
    return torch.randn(ROWS, 3, 24, 24, generator=torch.Generator().manual_seed(3))


def patches(prefix: int) -> Tensor:
    """The same pictures as our models take them: patches in the order of a convolution's weights."""
    return F.pad(F.unfold(pixels(), 8, stride=8).mT, (0, 0, prefix, 0))


def caption() -> Tensor:
    found = torch.randint(2, VOCAB, (ROWS, SEQ), generator=torch.Generator().manual_seed(4))
    found[:, -1] = EOS
    return found


@torch.no_grad()
def ours(model: nn.Module, cfg: ModelConfig) -> list[Tensor]:
    """What our model makes of the inputs."""
    if isinstance(cfg, ImageTextConfig):
        weights = F.one_hot(torch.full((ROWS, 1), SEQ - 1), SEQ).float()
        found = model(
            caption(),
            patches=patches(int(cfg.image.class_token)),
            documents=torch.zeros(ROWS, SEQ, dtype=torch.long),
            weights=weights,
        )
        text, image = found[:, : cfg.embedding], found[:, cfg.embedding : 2 * cfg.embedding]
        numbers = found[0, 2 * cfg.embedding :]
        logits = F.normalize(text) @ F.normalize(image).mT * numbers[0].exp()
        if cfg.learnt == "scale_bias":
            logits = logits + numbers[1]
        return [logits, F.normalize(text), F.normalize(image), numbers]
    if isinstance(cfg, VisionConfig):
        if cfg.head == "pixels":
            return [model(patches(1), places=hidden() + 1).unflatten(1, (3, -1))]
        return [model(patches(cfg.prefix))]
    found = [model(tokens(32))]
    if getattr(cfg, "next_sentence", False):
        states = model.get_submodule("next_sentence")
        head, model.head = model.head, None
        found.append(states(model(tokens(32))))
        model.head = head  # type: ignore[assignment]
    return found


def hidden() -> Tensor:
    return torch.tensor([[0, 2, 5], [1, 4, 8], [3, 6, 7]])


@torch.no_grad()
def expected(model: nn.Module, cfg: ModelConfig) -> list[Tensor]:
    """What theirs makes of the same."""
    if isinstance(cfg, ImageTextConfig):
        out = model(input_ids=caption(), pixel_values=pixels())
        numbers = [model.logit_scale, *([model.logit_bias] if cfg.learnt == "scale_bias" else [])]
        return [
            out.logits_per_text,
            out.text_embeds,
            out.image_embeds,
            torch.cat([n.reshape(1) for n in numbers]),
        ]
    if isinstance(cfg, VisionConfig):
        if cfg.head != "pixels":
            return [model(pixels()).logits]
        mask = torch.zeros(ROWS, 9, dtype=torch.bool).scatter_(1, hidden(), True)
        picture = model(pixels(), bool_masked_pos=mask).reconstruction
        every = F.unfold(picture, 8, stride=8).mT
        return [every.gather(1, hidden()[..., None].expand(-1, -1, every.shape[-1]))]
    out = model(tokens(32))
    if "prediction_logits" in out:
        return [out.prediction_logits, out.seq_relationship_logits]
    return [out.logits]


def assert_equal(found: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(found) == len(theirs)
    for one, other in zip(found, theirs):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= 1e-5
        assert float(other.abs().max()) > 0.05


def imported(folder: Path) -> tuple[nn.Module, ModelConfig, HuggingFaceSource]:
    source = HuggingFaceSource(folder)
    model = build_model(source.model).eval()
    own = dict(model.named_parameters())
    beside = {one.ours for one in source.family.also(source.model)}
    assert own.keys() == source.parameters.keys() - beside
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(source.read(name, [0] * parameter.ndim, parameter.shape))
    return model, source.model, source


@pytest.mark.parametrize("name", CASES)
def test_import_and_export_compute_what_transformers_does(name: str, tmp_path: Path) -> None:
    """A stock model, saved by transformers, read here; and from a checkpoint of ours back into its class."""
    import transformers
    from safetensors.torch import load_file

    cls, config, keys, objective, data = CASES[name]
    theirs = stock(cls, config, keys)
    theirs.save_pretrained(tmp_path / "stock")  # type: ignore[operator]
    model, cfg, source = imported(tmp_path / "stock")
    assert source.besides == []
    assert_equal(ours(model, cfg), expected(theirs, cfg))

    weights = {n: p.detach() for n, p in model.named_parameters()}
    make_trained_run(tmp_path / "run", eos=EOS, model=cfg, weights=weights, objective=objective, data=data)
    done = export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=100_000)
    assert done.architecture == cls
    back, report = getattr(transformers, cls).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert_equal(expected(back.eval(), cfg), expected(theirs, cfg))
    before = load_file(tmp_path / "stock" / "model.safetensors")
    after = {n: t for f in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(f).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_clips_published_configs_pool_the_largest_id(tmp_path: Path) -> None:
    """They say that the last token of a text has id 2, and mean the one with the largest id."""
    cls, config, keys, _, _ = CASES["clip"]
    legacy = keys | {"text_config": TEXT | {"eos_token_id": 2}}
    theirs = stock(cls, config, legacy)
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    model, cfg, _ = imported(tmp_path)
    text = caption()
    text[:, -1] = VOCAB - 1
    with torch.no_grad():
        weights = F.one_hot(torch.full((ROWS, 1), SEQ - 1), SEQ).float()
        documents = torch.zeros(ROWS, SEQ, dtype=torch.long)
        found = model(text, patches=patches(1), documents=documents, weights=weights)
        assert isinstance(cfg, ImageTextConfig)
        other = theirs(input_ids=text, pixel_values=pixels()).text_embeds
    assert_equal([F.normalize(found[:, : cfg.embedding])], [other])


@pytest.mark.parametrize(("model_type", "change", "message"), [
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key': not"),
    ("bert", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new': not supported: known here: gelu"),
    ("bert", {"is_decoder": True}, "is_decoder=True: not supported"),
    ("modernbert", {"mlp_bias": True}, "mlp_bias=True: not supported: the same as attention_bias=False is"),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
     "rope_parameters: full_attention: rope_type='yarn': not supported"),
    ("modernbert", {"layer_types": ["sliding_attention", "full_attention"] * 11}, "layer_types="),
    ("vit", {"qkv_bias": False}, "qkv_bias=False: not supported"),
    ("vit", {"num_channels": 1}, "num_channels=1: not supported"),
    ("vit", {"image_size": [24, 32]}, "image_size=[24, 32]: not an integer"),
    ("vit", {"preprocessor_config": {"do_normalize": False}}, "preprocessor_config: do_normalize=False: not"),
    ("vit", {"preprocessor_config": {"do_rescale": False}}, "preprocessor_config: do_rescale=False: not"),
    ("clip", {"text_config": {"hidden_act": "relu"}}, "text_config: hidden_act='relu': not supported"),
    ("clip", {"vision_config": {"new_switch": 3}}, "vision_config: new_switch=3: not supported: the key is"),
    ("siglip", {"vision_config": {"vision_use_head": False}}, "vision_use_head=False: not supported"),
])  # fmt: skip
def test_a_key_that_is_not_supported_is_named(model_type: str, change: dict[str, Any], message: str) -> None:
    of_config({"model_type": model_type}, "config.json")
    with pytest.raises(ValueError, match=r"^config\.json: [^\n]*$") as caught:
        of_config({"model_type": model_type} | change, "config.json")
    assert message in str(caught.value)


def test_names_of_berts_published_weights(tmp_path: Path) -> None:
    """Their LayerNorms have gamma and beta, and their tensors are dropped that no head here has."""
    from safetensors.torch import load_file, save_file

    cls, config, keys, _, _ = CASES["bert_pre_training"]
    theirs = stock(cls, config, keys)
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("BertForPreTraining", "BertForMaskedLM"))
    model, cfg, source = imported(tmp_path)
    assert source.besides == ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    assert_equal(ours(model, cfg), expected(theirs, cfg)[:1])


def test_pixels_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    cls, config, keys, _, _ = CASES["vit"]
    stock(cls, config, keys).save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    found = HuggingFaceSource(tmp_path).model
    assert isinstance(found, VisionConfig)
    assert (found.pixel_mean, found.pixel_std, found.classes) == ([0.1, 0.2, 0.3], [0.5] * 3, 7)

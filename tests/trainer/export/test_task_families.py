"""Models with the heads of tasks: import and export against `transformers`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stock_models import stock, tokens
from trained_runs import make_trained_run
from trainer.export.export import export
from trainer.first_weights.huggingface_source import HuggingFaceSource
from trainer.huggingface import choose
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.encoder.text_classes_config import TextClassesConfig
from trainer.models.towers.text_pair_config import TextPairConfig
from trainer.models.vision.config import VisionConfig
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.contrastive_config import ContrastiveConfig
from trainer.objectives.marked.config import AnswersConfig, TagsConfig
from trainer.objectives.masked.config import MaskedLMConfig
from trainer.objectives.pairs import text_weights
from trainer.objectives.picture_config import ClassificationConfig

ROWS, SEQ = 3, 12
LENGTHS = torch.tensor([12, 7, 4])
BLOCKS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 300,
}
IDS = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)
BERT = BLOCKS | {"max_position_embeddings": 40}
MODERN = BLOCKS | IDS | {"local_attention": 6, "global_attn_every_n_layers": 2, "num_labels": 5}
ONE, MARKED, PAIR = {"packing": "one"}, {"packing": "marked"}, {"packing": "pair"}
CASES: dict[str, tuple[str, str, dict[str, Any], ObjectiveConfig, dict[str, Any]]] = {
    "bert_texts": (
        "BertForSequenceClassification",
        "BertConfig",
        BERT | {"num_labels": 5},
        ClassificationConfig(),
        ONE,
    ),
    "bert_tokens": (
        "BertForTokenClassification",
        "BertConfig",
        BERT | {"num_labels": 5},
        TagsConfig(),
        MARKED,
    ),
    "bert_answers": ("BertForQuestionAnswering", "BertConfig", BERT, AnswersConfig(), MARKED),
    "bert_body": ("BertModel", "BertConfig", BERT, ContrastiveConfig(), PAIR),
    "modern_bert_texts": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        MODERN | {"classifier_pooling": "mean"},
        ClassificationConfig(),
        ONE,
    ),
    "modern_bert_texts_first": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        MODERN | dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True),
        ClassificationConfig(),
        ONE,
    ),
    "modern_bert_tokens": (
        "ModernBertForTokenClassification",
        "ModernBertConfig",
        MODERN,
        TagsConfig(),
        MARKED,
    ),
    "modern_bert_answers": (
        "ModernBertForQuestionAnswering",
        "ModernBertConfig",
        MODERN | {"num_labels": 2},
        AnswersConfig(),
        MARKED,
    ),
    "modern_bert_body": ("ModernBertModel", "ModernBertConfig", MODERN, ContrastiveConfig(), PAIR),
}


def there() -> Tensor:
    """Which tokens are no padding, bool [rows, seq]."""
    return torch.arange(SEQ) < LENGTHS[:, None]


@torch.no_grad()
def ours(model: nn.Module, cfg: ModelConfig) -> Tensor:
    """What our model makes of texts of different lengths, with padding behind them."""
    fed = {
        "positions": torch.arange(SEQ).expand(ROWS, -1),
        "documents": (~there()).long(),
    }
    x = tokens(SEQ, ROWS)
    if isinstance(cfg, TextPairConfig):  # both texts of a row are the same one
        found = model(
            x.repeat(1, 2),
            positions=fed["positions"].repeat(1, 2),
            documents=fed["documents"].repeat(1, 2),
            weights=text_weights(LENGTHS[:, None].repeat(1, 2), 2 * SEQ, cfg.pool),
        )
        return found[:, : cfg.hidden]
    if isinstance(cfg, TextClassesConfig):
        return model(x, **fed, weights=text_weights(LENGTHS[:, None], SEQ, cfg.pool))  # type: ignore[no-any-return]
    return model(x, **fed).unflatten(1, (SEQ, -1)) * there()[..., None]  # type: ignore[no-any-return]


@torch.no_grad()
def expected(model: nn.Module) -> Tensor:
    """What theirs makes of the same."""
    out = model(input_ids=tokens(SEQ, ROWS), attention_mask=there().long())
    inside = there()[..., None]
    if "start_logits" in out:
        return torch.stack((out.start_logits, out.end_logits), dim=2) * inside
    if "logits" in out:
        return out.logits * inside if out.logits.ndim == 3 else out.logits  # type: ignore[no-any-return]
    return (out.last_hidden_state * inside).sum(dim=1) / LENGTHS[:, None]  # type: ignore[no-any-return]


def assert_equal(found: Tensor, theirs: Tensor) -> None:
    assert found.shape == theirs.shape
    assert float((found - theirs).abs().max()) <= 1e-5
    assert float(theirs.abs().max()) > 0.05


@pytest.mark.parametrize("name", CASES)
def test_import_and_export_compute_what_transformers_does(name: str, tmp_path: Path) -> None:
    """A stock model, saved by transformers, read here; and from a checkpoint of ours back into its class."""
    import transformers
    from safetensors.torch import load_file

    cls, config, keys, objective, data = CASES[name]
    theirs = stock(cls, config, keys)
    theirs.save_pretrained(tmp_path / "stock")  # type: ignore[operator]
    source = HuggingFaceSource(tmp_path / "stock")
    model, cfg = build_model(source.model).eval(), source.model
    own = dict(model.named_parameters())
    beside = {one.ours: one.theirs for one in source.family.also(cfg)}
    assert own.keys() == source.parameters.keys() - beside.keys()
    assert source.besides == []
    with torch.no_grad():
        for parameter, tensor in own.items():
            tensor.copy_(source.read(parameter, [0] * tensor.ndim, tensor.shape))
    assert_equal(ours(model, cfg), expected(theirs))

    make_trained_run(tmp_path / "run", model=cfg, weights=own, objective=objective, data=data)
    done = export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=100_000)
    assert done.architecture == cls
    load = getattr(transformers, cls).from_pretrained
    without = {"add_pooling_layer": False} if cls == "BertModel" else {}
    back, report = load(tmp_path / "out", output_loading_info=True, **without)
    assert not any(report.values()), report
    assert torch.equal(expected(back.eval()), expected(theirs))
    before = load_file(tmp_path / "stock" / "model.safetensors")
    after = {n: t for f in (tmp_path / "out").glob("*.safetensors") for n, t in load_file(f).items()}
    assert before.keys() - after.keys() == set(beside.values()) and after.keys() <= before.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)


@pytest.mark.parametrize("cls", ["BertForMaskedLM", "BertForPreTraining"])
def test_a_bert_that_is_not_tied(cls: str, tmp_path: Path) -> None:
    """Its head has a bias that nothing reads, beside the one of the logits."""
    import transformers

    theirs = stock(cls, "BertConfig", BERT | {"tie_word_embeddings": False})
    theirs.save_pretrained(tmp_path / "stock")  # type: ignore[operator]
    source = HuggingFaceSource(tmp_path / "stock")
    model = build_model(source.model).eval()
    weights = {n: source.read(n, [0] * len(s), s).clone() for n, s in source.parameters.items()}
    model.load_state_dict(weights)
    assert source.besides == []

    def logits(one: nn.Module) -> Tensor:
        out = one(tokens(32))
        return out.logits if "logits" in out else out.prediction_logits  # type: ignore[no-any-return]

    with torch.no_grad():
        assert_equal(model(tokens(32)), logits(theirs))
    objective = MaskedLMConfig(next_sentence=cls == "BertForPreTraining")
    data = {"packing": "one", "partners": objective.next_sentence}
    make_trained_run(tmp_path / "run", model=source.model, weights=weights, objective=objective, data=data)
    export(tmp_path / "run", tmp_path / "out", step=None, dtype="fp32", shard_bytes=10**9)
    load = getattr(transformers, cls).from_pretrained
    back, report = load(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(logits(back.eval()), logits(theirs))


@pytest.mark.parametrize(("cfg", "message"), [
    (TextClassesConfig(), "model.head_layer=none, where ModernBertForSequenceClassification has gelu"),
    (TextClassesConfig(head_layer="gelu", pool="last"),
     "model.pool=last, where ModernBertForSequenceClassification has first"),
    (TextPairConfig(embedding=64), "model.embedding=64, where ModernBertModel has 0"),
    (VisionConfig(registers=2), "model.registers=2, where IJepaForImageClassification has 0"),
    (VisionConfig(head="embedding"), "model.head=embedding, where IJepaForImageClassification has classes"),
])  # fmt: skip
def test_a_head_that_no_architecture_has_is_named(cfg: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=r"^no architecture of transformers computes [^\n]*$") as caught:
        choose.for_export(cfg, 32)
    assert message in str(caught.value)

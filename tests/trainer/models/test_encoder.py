"""BERT and ModernBERT are configs of one encoder, with Hugging Face's logits and losses."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.objective import IGNORED
from data.config import DataConfig, Source
from trainer.config import schema
from trainer.config.run_config import RunConfig
from trainer.models.encoder.config import EncoderConfig
from trainer.models.encoder.encoder import Encoder
from trainer.objectives.masked.config import MaskedLMConfig

ROOT = Path(__file__).resolve().parents[3]
SIZES: dict[str, Any] = {"layers": 4, "hidden": 48, "heads": 4, "ffn_hidden": 80, "vocab": 50}
BERT = EncoderConfig(
    **SIZES,
    norm_place="post",
    activation="gelu",
    biases=True,
    positions="learned",
    max_positions=40,
    token_types=2,
    next_sentence=True,
    norm_eps=1e-12,
    window=0,
)
MODERN = EncoderConfig(**SIZES, window=5)
EVERY = {"bert": BERT, "modern": MODERN}


def drawn(cfg: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    model = Encoder(cfg)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start at one, biases at zero, where a missing one would not be seen
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def tokens(seq: int = 32, rows: int = 3) -> Tensor:
    return torch.randint(50, (rows, seq), generator=torch.Generator().manual_seed(1))


def renamed(model: Encoder, names: dict[str, str]) -> dict[str, Tensor]:
    """The model's tensors under other names: known parts of a name are replaced, the longest first."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    parts = re.compile(rf"(?<![^.])({known})(?=\.)")
    return {parts.sub(lambda m: names[m[1]], name): tensor for name, tensor in model.state_dict().items()}


def bert(model: Encoder) -> nn.Module:
    from transformers import BertConfig, BertForPreTraining

    cfg = model.cfg
    theirs = BertForPreTraining(
        BertConfig(
            vocab_size=cfg.vocab,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.ffn_width,
            max_position_embeddings=cfg.max_positions,
            hidden_act="gelu",
            attn_implementation="eager",
        )
    )
    state = renamed(
        model,
        {
            "embed": "bert.embeddings.word_embeddings",
            "position_embed": "bert.embeddings.position_embeddings",
            "type_embed": "bert.embeddings.token_type_embeddings",
            "embed_norm": "bert.embeddings.LayerNorm",
            "layers": "bert.encoder.layer",
            "attention.wq": "attention.self.query",
            "attention.wk": "attention.self.key",
            "attention.wv": "attention.self.value",
            "attention.wo": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "mlp.w1": "intermediate.dense",
            "mlp.w2": "output.dense",
            "mlp_norm": "output.LayerNorm",
            "next_sentence.pooler": "bert.pooler.dense",
            "next_sentence.classifier": "cls.seq_relationship",
            "head.transform.dense": "cls.predictions.transform.dense",
            "head.transform.norm": "cls.predictions.transform.LayerNorm",
            "head": "cls.predictions.decoder",
        },
    )
    state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    theirs.load_state_dict(state)
    return theirs.eval()  # it drops out by default


def modern_bert(model: Encoder) -> nn.Module:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    cfg = model.cfg
    theirs = ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=cfg.vocab,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            intermediate_size=cfg.ffn_width,
            global_attn_every_n_layers=cfg.global_every,
            local_attention=2 * cfg.window,
            **dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id"), 0),
            sep_token_id=0,
            attn_implementation="eager",
        )
    )
    state = renamed(
        model,
        {
            "embed": "model.embeddings.tok_embeddings",
            "embed_norm": "model.embeddings.norm",
            "layers": "model.layers",
            "attention_norm": "attn_norm",
            "attention.wo": "attn.Wo",
            "mlp.w2": "mlp.Wo",
            "norm": "model.final_norm",
            "head.transform.dense": "head.dense",
            "head.transform.norm": "head.norm",
            "head": "decoder",
        },
    )
    for layer in range(cfg.layers):
        here = f"model.layers.{layer}"
        qkv = [state.pop(f"{here}.attention.{name}.weight") for name in ("wq", "wk", "wv")]
        state[f"{here}.attn.Wqkv.weight"] = torch.cat(qkv)
        up = [state.pop(f"{here}.mlp.{name}.weight") for name in ("w1", "w3")]
        state[f"{here}.mlp.Wi.weight"] = torch.cat(up)
    theirs.load_state_dict(state)
    return theirs.eval()


@torch.no_grad()
def test_bert_is_that_of_hugging_face() -> None:
    model = drawn(BERT)
    theirs, types = bert(model), (torch.arange(32) >= 20).long().expand(3, -1)
    found = theirs(tokens(), token_type_ids=types)
    logits = model(tokens(), types=types)
    torch.testing.assert_close(logits, found.prediction_logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(tokens()), logits, rtol=1e-2)
    assert torch.allclose(model(tokens()), theirs(tokens()).prediction_logits, rtol=1e-5, atol=1e-5)
    # Its mean over tokens and its mean over rows, where the rows have equally many targets.
    places = torch.tensor([[3, 9, 31, -1, 2]]).expand(3, -1)
    labels, targets = torch.tensor([0, 1, 1]), torch.full((3, 32), IGNORED)
    targets = targets.scatter(1, places[:, [0, 1, 2, 4]], 7)
    expected = theirs(tokens(), token_type_ids=types, labels=targets, next_sentence_label=labels).loss
    chosen = torch.tensor([[7, 7, 7, IGNORED, 7]]).expand(3, -1)
    output = model(tokens(), types=types, targets=chosen, places=places, labels=labels)
    assert torch.allclose(output[:, 0].sum() / 12, expected, rtol=1e-5)
    # Each row's further figures.
    best = found.prediction_logits.argmax(2)
    assert output[:, 1].tolist() == [(best[row, places[row, [0, 1, 2, 4]]] == 7).sum() for row in range(3)]
    told = F.cross_entropy(found.seq_relationship_logits, labels, reduction="none")
    assert torch.allclose(output[:, 2], told, rtol=1e-5)
    assert output[:, 3].tolist() == (found.seq_relationship_logits.argmax(1) == labels).tolist()


@torch.no_grad()
def test_padding_is_not_attended_to() -> None:
    model = drawn(BERT)
    documents = (torch.arange(32) >= 20).long().expand(3, -1)
    mask = (documents == 0).long()
    expected = bert(model)(tokens(), attention_mask=mask).prediction_logits
    found = model(tokens(), documents=documents)
    torch.testing.assert_close(found[:, :20], expected[:, :20], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(tokens())[:, :20], found[:, :20], rtol=1e-2)


@torch.no_grad()
def test_modern_bert_is_that_of_hugging_face() -> None:
    model = drawn(MODERN)
    theirs = modern_bert(model)
    torch.testing.assert_close(model(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("bert", "norm_place", "pre"),
        ("bert", "activation", "gelu_tanh"),
        ("bert", "norm_eps", 1e-2),
        ("modern", "window", 6),
        ("modern", "global_every", 2),
        ("modern", "rope_theta", 1e4),
        ("modern", "rope_theta_local", 2e4),
    ],
)
@torch.no_grad()
def test_another_value_of_a_key_is_seen(name: str, key: str, value: Any) -> None:
    model = drawn(EVERY[name])
    other = Encoder(EncoderConfig(**{**vars(model.cfg), key: value})).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(other(tokens()), model(tokens()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cfg", EVERY.values(), ids=EVERY)
def test_two_halves_chained_are_the_whole(cfg: EncoderConfig) -> None:
    whole = drawn(cfg).train()
    first, second = copy.deepcopy(whole), copy.deepcopy(whole)
    for name in cfg.plan().last:
        setattr(first, name, None)
    for name in cfg.plan().first:
        setattr(second, name, None)
    for key in list(whole.layers):
        del (first if int(key) >= 2 else second).layers[key]
    inputs = {
        "targets": tokens(5),
        "places": tokens(5) % 32,
        "documents": torch.arange(32).expand(3, -1) // 9,
        "labels": torch.tensor([0, 1, 0]),
    }
    expected = whole(tokens(), **inputs)
    got = second(first(tokens(), **inputs), **inputs)
    assert expected.shape == (3,) and torch.allclose(got, expected, rtol=1e-6)
    expected.sum().backward(), got.sum().backward()
    parts = dict(first.named_parameters()) | dict(second.named_parameters())
    for name, parameter in whole.named_parameters():
        gradient = parts[name].grad
        if (name, "head.weight") in cfg.plan().tied:
            gradient = parts[name].grad + parts["head.weight"].grad
        assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("cfg", EVERY.values(), ids=EVERY)
@torch.no_grad()
def test_documents_are_as_if_alone(cfg: EncoderConfig) -> None:
    model, lengths = drawn(cfg), [15, 1, 16]
    inputs = {
        "documents": torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None],
        "positions": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    whole = tokens()[:1]
    alone = torch.cat([model(part) for part in whole.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(model(whole, **inputs), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cfg", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize(
    "change", [{}, {"tie_embeddings": False}, {"norm": "rms"}, {"biases": True}, {"next_sentence": False}]
)
def test_parameters_are_counted(cfg: EncoderConfig, change: dict[str, Any]) -> None:
    cfg = EncoderConfig(**{**vars(cfg), **change})
    model = Encoder(cfg)
    found = cfg.parameters()
    assert found.total == sum(p.numel() for p in model.parameters())
    assert found.block == sum(p.numel() for p in model.layers["1"].parameters())


@pytest.mark.parametrize("cfg", EVERY.values(), ids=EVERY)
def test_operations_are_those_that_torch_counts_in_a_forward(cfg: EncoderConfig) -> None:
    with torch.device("meta"):
        model, ids = Encoder(cfg), torch.zeros(2, 40, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(ids, documents=ids)
    assert counter.get_total_flops() == cfg.training_flops(40).total / 3 * 2
    # A run's head computes the places that are predicted.
    run = RunConfig("run", cfg, DataConfig([Source("x")], seq_len=40), objective=MaskedLMConfig())
    parts = cfg.training_flops(40)
    assert run.flops_per_row == pytest.approx(parts.blocks * parts.block + 0.15 * parts.last)


def test_published_sizes() -> None:
    """docs/models.md has the keys of published encoders, and their numbers of parameters."""
    text = (ROOT / "docs/models.md").read_text()
    found = re.findall(r"^# .*: ([\d,]+) parameters\n(\{kind: encoder.+)$", text, re.M)
    assert len(found) == 4
    for count, keys in found:
        model = schema.build(EncoderConfig, yaml.safe_load(keys))
        model.check()
        assert model.parameters().total == int(count.replace(",", "")), keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 50}, "model.hidden: 50 is not divisible by model.heads 4: change one"),
        ({"hidden": 12}, "12 / model.heads 4 = 3 a head; model.positions=rope needs an even number"),
        ({"token_types": 1}, "model.token_types: 1 tells nothing apart: set 2, or 0 for none"),
    ],
)
def test_what_does_not_go_together_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        EncoderConfig(**{**SIZES, **change}).check()
    assert message in str(caught.value) and "\n" not in str(caught.value)

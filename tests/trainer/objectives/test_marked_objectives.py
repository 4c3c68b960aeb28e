"""Tags and answers against `transformers` for the same weights; figures against `seqeval`; instructions."""

from typing import Any

import pytest
import seqeval.metrics
import torch
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from common.objective import IGNORED, ModelInputs
from data.config import DataConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.models.encoder.token_classes import TokenClasses
from trainer.models.encoder.token_classes_config import TokenClassesConfig
from trainer.objectives.build import build_objective
from trainer.objectives.config import ObjectiveConfig
from trainer.objectives.context import ObjectiveContext
from trainer.objectives.marked.config import AnswersConfig, InstructionConfig, TagsConfig
from trainer.objectives.marked.entities import entities

SEQ, ROWS = 24, 6
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SIZES: dict[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "ffn_hidden": 48,
    "vocab": 60,
    "norm_place": "post",
    "activation": "gelu",
    "biases": True,
    "positions": "learned",
    "max_positions": SEQ,
    "token_types": 2,
    "norm_eps": 1e-12,
    "window": 0,
}
# In the order of their lengths: parts of ours that are found in a name, theirs.
NAMES = {
    "embed_norm": "bert.embeddings.LayerNorm",
    "position_embed": "bert.embeddings.position_embeddings",
    "type_embed": "bert.embeddings.token_type_embeddings",
    "embed": "bert.embeddings.word_embeddings",
    "attention.wq": "attention.self.query",
    "attention.wk": "attention.self.key",
    "attention.wv": "attention.self.value",
    "attention.wo": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.w1": "intermediate.dense",
    "mlp.w2": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def theirs_of(model: TokenClasses, cls: Any, head: str, classes: int) -> torch.nn.Module:
    cfg = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=SEQ,
        hidden_act="gelu",
        num_labels=classes,
        attn_implementation="eager",
    )
    made = cls(cfg)
    state = {}
    for name, tensor in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module == "head.project":
            other = head
        elif module.startswith("layers."):
            _, number, inner = module.split(".", 2)
            other = f"bert.encoder.layer.{number}.{NAMES[inner]}"
        else:
            other = NAMES[module]
        state[f"{other}.{kind}"] = tensor
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing), (missing, unexpected)
    return made.eval()


def rows(marks: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A batch whose rows have different lengths, and its attention mask."""
    draw = torch.Generator().manual_seed(3)
    length = torch.tensor([SEQ, 20, 9, 15, SEQ, 12])
    place = torch.arange(SEQ)
    there = place < length[:, None]
    tokens = torch.randint(1, 60, (ROWS, SEQ), generator=draw).where(there, 0)
    following = tokens.roll(-1, dims=1).where(place < length[:, None] - 1, 0).where(there, -1)
    following[0, -1] = 7  # the first row's text goes on
    return {
        "tokens": tokens,
        "following": following,
        "positions": torch.where(there, place, place - length[:, None]),
        "documents": (~there).long(),
        "length": length,
        "marks": marks.where(there & (place > 0), 0),
        "following_marks": marks.roll(-1, dims=1).where(place < length[:, None] - 1, 0),
    }, there


def made(cfg: ObjectiveConfig, classes: int, weights: tuple[float, ...] = ()) -> tuple[TokenClasses, Any]:
    torch.manual_seed(0)
    model = TokenClasses(TokenClassesConfig(**SIZES, classes=classes)).eval()
    return model, build_objective(
        cfg, ObjectiveContext(0, SEQ, 60, 0, bytes, model.cfg, class_weights=weights)
    )


def random_marks(most: int) -> Tensor:
    return torch.randint(0, most + 1, (ROWS, SEQ), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("weights", [(), (1.0, 4.0, 2.0, 0.5, 1.0)])
def test_tags_are_those_of_bert(weights: tuple[float, ...]) -> None:
    model, objective = made(TagsConfig(), 5, weights)
    tensors, there = rows(random_marks(5))
    inputs = objective.inputs(tensors, tuple(range(ROWS)))
    losses, counts = objective.loss(model(inputs.x, **inputs.kwargs), inputs)
    theirs = theirs_of(model, BertForTokenClassification, "classifier", 5)
    logits = theirs(input_ids=tensors["tokens"], attention_mask=there.long()).logits
    labels = (tensors["marks"] - 1).masked_fill(tensors["marks"] == 0, -100)
    weight = torch.tensor(weights) if weights else None
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight)
    torch.testing.assert_close(losses.sum() / counts.sum(), expected, rtol=1e-5, atol=1e-6)
    assert float(losses.sum()) > 1


def test_answers_are_those_of_bert() -> None:
    model, objective = made(AnswersConfig(), 2)
    marks = torch.zeros(ROWS, SEQ, dtype=torch.int64)
    marks[:, 4:] = 1
    for row, (first, last) in enumerate([(6, 8), (5, 5), (4, 8)]):
        marks[row, last], marks[row, first] = 3, 2 if last > first else 4
    tensors, there = rows(marks)
    inputs = objective.inputs(tensors, tuple(range(ROWS)))
    losses, counts = objective.loss(model(inputs.x, **inputs.kwargs), inputs)
    theirs = theirs_of(model, BertForQuestionAnswering, "qa_outputs", 2)
    found = theirs(input_ids=tensors["tokens"], attention_mask=there.long())
    closed = (tensors["marks"] == 0) & (torch.arange(SEQ) > 0)
    first, last = torch.tensor([6, 5, 4, 0, 0, 0]), torch.tensor([8, 5, 8, 0, 0, 0])
    expected = sum(
        F.cross_entropy(scores.masked_fill(closed, -1e9), place)
        for scores, place in ((found.start_logits, first), (found.end_logits, last))
    )
    torch.testing.assert_close(losses.sum() / counts.sum(), expected / 2, rtol=1e-5, atol=1e-6)
    assert counts.tolist() == [1.0] * ROWS


def test_a_context_that_is_cut_before_its_answer_is_not_counted() -> None:
    _, objective = made(AnswersConfig(), 2)
    marks = torch.ones(ROWS, SEQ, dtype=torch.int64)
    tensors, _ = rows(marks)
    inputs = objective.inputs(tensors, tuple(range(ROWS)))
    # Row 0 goes on behind its end; row 4 is as long and ends there.
    assert inputs.kwargs["first"].tolist() == [-1, 0, 0, 0, 0, 0]
    tensors["marks"][0, 20] = 2  # begins in the row and ends behind it
    inputs = objective.inputs(tensors, tuple(range(ROWS)))
    assert inputs.kwargs["first"].tolist()[0] == -1
    _, counts = objective.loss(torch.zeros(ROWS, 2 * SEQ), inputs)
    assert counts.tolist() == [0, 1, 1, 1, 1, 1]


def test_the_found_answer_is_the_best_of_all_by_enumeration() -> None:
    _, objective = made(AnswersConfig(longest=4), 2)
    marks = torch.zeros(ROWS, SEQ, dtype=torch.int64)
    marks[:, 3:] = 1
    marks[:, 6], marks[:, 7] = 2, 3
    tensors, _ = rows(marks)
    inputs = objective.inputs(tensors, tuple(range(ROWS)))
    output = torch.randn(ROWS, SEQ, 2, generator=torch.Generator().manual_seed(1)) * 3
    exact = f1 = 0.0
    for row in range(ROWS):
        open_ = [place for place in range(SEQ) if tensors["marks"][row, place] > 0]
        spans = [(a, b) for a in open_ for b in open_ if 0 <= b - a < 4] + [(0, 0)]
        low, high = max(spans, key=lambda span: float(output[row, span[0], 0] + output[row, span[1], 1]))
        exact += (low, high) == (6, 7)
        shared = len(set(range(low, high + 1)) & {6, 7})
        f1 += 2 * shared / (high - low + 3) if low else 0
    measured = objective.measure(output.flatten(1), inputs)
    assert measured.tolist() == [[exact, ROWS], [pytest.approx(f1), ROWS]]
    right = torch.zeros(ROWS, SEQ, 2)
    right[:, 6, 0] = right[:, 7, 1] = 9.0
    assert AnswersConfig().figures(
        dict(zip(objective.measures, objective.measure(right.flatten(1), inputs).tolist()))
    ) == {"token_exact_match": 1.0, "token_f1": 1.0}


def test_figures_of_entities_are_those_of_seqeval() -> None:
    cfg = TagsConfig(tags=TAGS)
    _, objective = made(cfg, 5)
    tensors, _ = rows(random_marks(5))
    inputs = objective.inputs(tensors, tuple(range(ROWS)))
    draw = torch.Generator().manual_seed(9)
    output = torch.randn(ROWS, SEQ, 5, generator=draw) + 2 * F.one_hot((tensors["marks"] - 1).clamp(min=0), 5)
    found = cfg.figures(dict(zip(objective.measures, objective.measure(output.flatten(1), inputs).tolist())))
    words = tensors["marks"] > 0
    true, predicted = (
        [[TAGS[tag] for tag in row[there].tolist()] for row, there in zip(each, words)]
        for each in (tensors["marks"] - 1, output.argmax(dim=2))
    )
    assert found == {
        "accuracy": pytest.approx(seqeval.metrics.accuracy_score(true, predicted)),
        "precision": pytest.approx(seqeval.metrics.precision_score(true, predicted)),
        "recall": pytest.approx(seqeval.metrics.recall_score(true, predicted)),
        "f1": pytest.approx(seqeval.metrics.f1_score(true, predicted)),
    }
    assert 0.1 < found["f1"] < 0.9


def test_entities_by_hand() -> None:
    tags = ["I-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC", "I-PER", "X"]
    assert entities(tags) == {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 5), ("PER", 6, 6)}
    assert entities([]) == set()


def test_entities_of_every_scheme_are_those_of_seqeval() -> None:
    """Right and wrong tags, by chance: IO, BIO and BIOES are special cases."""
    draw = torch.Generator().manual_seed(1)
    names = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))]
    for _ in range(300):
        tags = [names[number] for number in torch.randint(len(names), (9,), generator=draw).tolist()]
        expected = {(kind, first, last) for kind, first, last in get_entities(tags)}
        assert entities(tags) == expected, tags


def test_instructions_train_on_marked_tokens_alone() -> None:
    model = DecoderConfig(vocab=60)
    objective = build_objective(InstructionConfig(), ObjectiveContext(0, SEQ, 60, 0, bytes, model))
    tensors, _ = rows(random_marks(1))
    inputs: ModelInputs = objective.inputs(tensors, tuple(range(ROWS)))
    targets = inputs.kwargs["targets"]
    for row in range(ROWS):
        for place in range(SEQ):
            counted = place + 1 < int(tensors["length"][row]) and int(tensors["marks"][row, place + 1]) == 1
            expected = int(tensors["tokens"][row, place + 1]) if counted else IGNORED
            assert int(targets[row, place]) == expected
    _, counts = objective.loss(torch.zeros(ROWS), inputs)
    assert counts.tolist() == (targets != IGNORED).sum(dim=1).tolist()


@pytest.mark.parametrize(
    ("cfg", "model", "data", "message"),
    [
        (InstructionConfig(), DecoderConfig(), DataConfig(), "set data.packing=marked"),
        (
            TagsConfig(tags=TAGS),
            TokenClassesConfig(classes=3),
            DataConfig(packing="marked"),
            "names 5 tags, and model.classes=3",
        ),
        (AnswersConfig(), TokenClassesConfig(classes=3), DataConfig(packing="marked"), "set model.classes=2"),
    ],
)
def test_what_does_not_go_together_is_refused(
    cfg: ObjectiveConfig, model: Any, data: DataConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cfg.check(model, data)


def test_a_tag_that_the_model_does_not_have_is_named() -> None:
    _, objective = made(TagsConfig(), 3)
    tensors, _ = rows(random_marks(5))
    with pytest.raises(ValueError, match=r"a word has tag 4, and model\.classes=3"):
        objective.inputs(tensors, tuple(range(ROWS)))

"""Text out of a run folder: whole characters, the run's separator and template, the checkpoint of a step."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing

from data.tokenizer import training
from trained_runs import VOCAB, make_trained_run
from trainer.checkpoint import folder as checkpoints
from trainer.config import reading
from trainer.generate import text
from trainer.generate.text import continue_text, decode
from trainer.models.decoder.decoder import Decoder
from trainer.state import Identity
from trainer.trained.sampling import generate


@pytest.mark.parametrize("written", ["é", "🎉! ", "日本 e\u0301"])
def test_pieces_are_whole_characters(written: str) -> None:
    tokenizer = training.utf8_bytes()
    ids = tokenizer.encode(written).ids
    assert len(ids) == len(written.encode())
    pieces = [piece for piece in decode(iter(ids), tokenizer) if piece]
    assert pieces == list(written)
    # What never becomes a character is shown as such at the end, not lost.
    assert "".join(decode(iter(ids[:-1]), tokenizer)) == tokenizer.decode(ids[:-1])


def test_bytes_that_are_no_text_do_not_end_a_stream() -> None:
    """A tokenizer of SentencePiece's kind shows a run of bytes anew when one more makes it no UTF-8."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁a", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    word, minus, euro = 257, 1 + 0x2D, [1 + byte for byte in "€".encode()]
    assert "".join(decode(iter([word, word, *euro, word]), tokenizer)) == "a a€ a"
    found = list(decode(iter([word, minus, 1 + 0xE2, 0, word]), tokenizer))
    assert found[:2] == ["a", "-"] and found[-2].endswith(" a")


@pytest.mark.parametrize(("tied", "eos"), [(True, 0), (False, 0), (False, 7)])
def test_a_run_folder_continues_a_text(tmp_path: Path, tied: bool, eos: int) -> None:
    """The separator is the one that the corpus had, whatever the tokenizer's names say."""
    model = make_trained_run(tmp_path / "run", tied, eos=eos)
    found = "".join(continue_text(tmp_path / "run", "def é", max_tokens=20, temperature=0))
    tokenizer = training.utf8_bytes()
    prompt = [eos, *tokenizer.encode("def é").ids]
    expected = generate(model, prompt, max_tokens=20, context=32, temperature=0, stop=[eos], vocab=VOCAB)
    assert found == tokenizer.decode(list(expected)) and found


def test_a_text_of_a_chat_model_ends_with_its_message(tmp_path: Path) -> None:
    """The chat template of the run says which special token that is; the corpora are gone."""
    tokenizer = training.utf8_bytes()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    content = tokenizer.to_str(pretty=True).encode()
    make_trained_run(run := tmp_path / "run", tokenizer=content)
    trained = text.open_writer(run)
    asked: dict[str, Any] = {"max_tokens": 30, "context": 32, "temperature": 0}
    ids = list(generate(trained.model, [0, *trained.prompting.encode("ab")], **asked, vocab=VOCAB + 2))
    assert trained.ends == {0}
    for first, last in (("<|im_start|>", "<|im_end|>\n"), ("", " <|im_end|>"), ("<|im_end|>", "\n")):
        template = "{% for m in messages %}" + first + "{{ m['role'] }} {{ m['content'] | trim }}" + last
        (run / "chat_template.jinja").write_text(template.replace("\n", "{{ '\\n' }}") + "{% endfor %}")
        assert text.open_writer(run).ends == ({0, VOCAB + 1} if last.strip() else {0})
    model, end = trained.model, ids[5]
    ending = text.TrainedModel(model, trained.tokenizer, 32, 0, frozenset({0, end}), False)
    expected = trained.tokenizer.decode(ids[: ids.index(end)])
    assert "".join(text.continue_prompt(ending, "ab", max_tokens=30, temperature=0)) == expected
    assert list(text.continue_prompts(ending, ["ab"], batch=2, max_tokens=30, temperature=0)) == [expected]


def test_texts_come_in_the_order_of_their_prompts_each_as_soon_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trained_run(tmp_path / "run")
    ended: list[int] = []

    def written(*args: Any, **kwargs: Any) -> Iterator[tuple[int, list[int]]]:
        for number in (1, 0, 3, 2):
            ended.append(number)
            yield number, training.utf8_bytes().encode("abcd"[number]).ids

    monkeypatch.setattr(text, "generate_many", written)
    found = text.continue_prompts(text.open_writer(tmp_path / "run"), ["", "", "", ""], batch=4, max_tokens=1)
    seen = [(one, len(ended)) for one in found]
    assert seen == [("a", 2), ("b", 2), ("c", 4), ("d", 4)]


def test_an_older_checkpoint_can_be_asked_for(tmp_path: Path) -> None:
    make_trained_run(run := tmp_path / "run")
    newest, older = ("".join(continue_text(run, "ab", step=step)) for step in (2, 1))
    assert "".join(continue_text(run, "ab")) == newest != older
    checkpoints.delete(checkpoints.step_folder(run / "checkpoints", 2))
    assert "".join(continue_text(run, "ab")) == older


@pytest.mark.parametrize("said", [{}, {"template": False}, {"template": True}])
def test_a_prompt_has_the_template_that_the_documents_had(tmp_path: Path, said: dict[str, bool]) -> None:
    """Checkpoints that do not say are of corpora that had none."""
    tokenizer = training.utf8_bytes()
    tokenizer.post_processor = TemplateProcessing(single="Z $A", special_tokens=[("Z", 58)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sha256 = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    own = Identity(tokenizer={"sha256": sha256, "eos": 0, **said}).to_json()
    model = make_trained_run(tmp_path / "run", steps=(2,), identity=own)
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "run")
    prompt = [0, *([58] if said.get("template") else []), *training.utf8_bytes().encode("ab").ids]
    expected = generate(model, prompt, max_tokens=20, context=32, temperature=0, stop=[0], vocab=VOCAB)
    found = "".join(continue_text(tmp_path / "run", "ab", max_tokens=20, temperature=0))
    assert found == tokenizer.decode(list(expected)) and found


def test_a_model_that_predicts_no_next_token_continues_no_text(tmp_path: Path) -> None:
    config = "model: {kind: encoder}\nobjective: {kind: masked_lm}\ndata: {sources: [{path: x}]}\n"
    (run := tmp_path / "run").mkdir()
    (run / "config.yaml").write_text(config)
    (run / "events.jsonl").touch()
    with pytest.raises(ValueError, match=r"model\.kind=encoder predicts no next token: it continues no text"):
        continue_text(run, "ab")
    with pytest.raises(ValueError, match=r"^track\.samples: model\.kind=encoder predicts no next token"):
        reading.load(run / "config.yaml", ["track.samples=[ab]"])


def test_a_model_that_takes_no_cache_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the user's own that offers next-token prediction need not be one that continues texts."""
    make_trained_run(tmp_path / "run")
    monkeypatch.setattr(Decoder, "forward", lambda self, x, **more: None)
    with pytest.raises(ValueError, match=r"the forward of model\.kind=decoder takes no `cache`"):
        next(continue_text(tmp_path / "run", "ab"))


def test_a_prompt_is_a_line_whatever_characters_it_holds(tmp_path: Path) -> None:
    prompts = ["one\u2028two\x0cthree", "a\u2028b", "four"]
    said = json.dumps({"prompt": prompts[1]}, ensure_ascii=False)
    (file := tmp_path / "prompts").write_text(f"{prompts[0]}\n{said}\n{prompts[2]}\n")
    assert text.read_prompts(file) == prompts

"""A question, a context, and where in the context the answer is, as in SQuAD (Rajpurkar et al. 2016,
arXiv:1606.05250): {"question": …, "context": …, "answers": {"text": […], "answer_start": […]}}.
"""

from typing import Any

from data.corpus.questions import ANSWERS
from data.prepare.document import Document, Mark, Marks
from data.prepare.tally import Tally

CONTEXT, FIRST, LAST, ONLY = 1, 2, 3, 4  # marks: a token of the context; the answer's first, last, only token


def answered(
    question: Any, context: Any, answers: Any, origin: dict[str, Any], tally: Tally, where: str
) -> Document | None:
    """The question and, behind a separator, the context, whose tokens are marked; the first of several
    answers is marked in it, and the texts of all go into the origin. A question without an answer (SQuAD
    2.0) has a context without one.

    None, counted in the tally, where a field is missing, or where the context has another text at the
    answer's place.
    """
    if not isinstance(question, str) or not isinstance(context, str) or not context.strip():
        tally.add("removed.no_question", 0, where)
        return None
    texts, starts = _listed(answers)
    if (
        texts is None
        or starts is None
        or len(texts) != len(starts)
        or not all(isinstance(text, str) for text in texts)
    ):
        tally.add("removed.no_answers", len(context), where)
        return None
    stretches = [Mark(0, len(context), each=CONTEXT)]
    for text, start in list(zip(texts, starts))[:1]:
        if type(start) is not int or not text or start < 0 or context[start:][: len(text)] != text:
            tally.add("removed.answer_elsewhere", len(context), f"{where} ({text!r} at {start!r})")
            return None
        stretches.append(Mark(start, start + len(text), each=CONTEXT, first=FIRST, last=LAST))
    origin = {**origin, ANSWERS: texts}
    return Document(question, origin, second=context, marks=Marks(tuple(stretches)))


def _listed(answers: Any) -> tuple[list[Any] | None, list[Any] | None]:
    """(texts, first characters) of answers as a struct of lists or as a list of structs."""
    if isinstance(answers, list) and all(isinstance(one, dict) for one in answers):
        return [one.get("text") for one in answers], [one.get("answer_start") for one in answers]
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        return texts if isinstance(texts, list) else None, starts if isinstance(starts, list) else None
    return None, None

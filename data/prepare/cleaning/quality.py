"""The published rules that take bad text out of a crawl. Each returns why a text is left out, or "" for a
text that stays. `c4` returns the cleaned text too.

- `gopher_quality`: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1, "Quality filtering".
- `gopher_repetition`: the same, table A1, with the table's thresholds.
- `c4`: Raffel et al. 2020, arXiv:1910.10683, section 2.2; it also takes single lines out of a text that
  stays. Not included: the list of bad words and langdetect (use a hook), and the removal of repeated
  three-sentence spans (use deduplication).
"""

from collections.abc import Sequence

import numpy as np

from data.prepare.cleaning.words import Hashes, hashes, runs

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "-", "*", "‣", "◦", "▪")
ELLIPSES = ("...", "…")

# Table A1: the share of the text, in lines or characters, that may be repetition.
LINES_REPEATED = 0.30
PARAGRAPHS_REPEATED = 0.30
LINE_CHARACTERS_REPEATED = 0.20
PARAGRAPH_CHARACTERS_REPEATED = 0.20
TOP_RUN_CHARACTERS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_RUN_CHARACTERS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

C4_LINE_ENDS = (".", "!", "?", '"', "”", "'")
C4_LEAST_WORDS_A_LINE = 5
C4_LEAST_SENTENCES = 3
C4_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
C4_CITATIONS = ("[edit]", "[citation needed]")


def gopher_quality(text: str) -> str:
    """Limits on words, symbols, bullets and ellipses; a least share of words with letters, and at least two
    different stop words.
    """
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        return "word_count"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        return "mean_word_length"
    ellipses = sum(text.count(mark) for mark in ELLIPSES)
    if text.count("#") / len(words) > 0.1 or ellipses / len(words) > 0.1:
        return "symbols"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(BULLETS) for line in lines) > 0.9 * len(lines):
        return "bullets"
    if ellipses and sum(line.rstrip().endswith(ELLIPSES) for line in lines) > 0.3 * len(lines):
        return "ellipses"
    with_letters = sum(1 for word in words if word[0].isalpha() or any(map(str.isalpha, word)))
    if with_letters < 0.8 * len(words):
        return "words_without_letters"
    return "" if _has_stop_words(words, 2) else "stop_words"


def _has_stop_words(words: Sequence[str], least: int) -> bool:
    """Has the text so many different stop words? Most texts have them among their first words."""
    found: set[str] = set()
    for word in words:
        bare = word.strip(".,;:!?\"'()").lower()
        if bare in STOP_WORDS:
            found.add(bare)
            if len(found) == least:
                return True
    return False


def gopher_repetition(text: str) -> str:
    """Limits on repeated lines, paragraphs and n-grams of words.

    A first occurrence is no repetition, and a character in several repeated n-grams counts once; but
    `top_N_gram` counts every occurrence of one n-gram, overlaps included. Shares of n-grams are of the words'
    characters.
    """
    for name, parts, most, most_characters in (
        ("lines", text.splitlines(), LINES_REPEATED, LINE_CHARACTERS_REPEATED),
        ("paragraphs", text.split("\n\n"), PARAGRAPHS_REPEATED, PARAGRAPH_CHARACTERS_REPEATED),
    ):
        stripped = [part.strip() for part in parts if part.strip()]
        again, again_characters = _repeated(stripped)
        if again > most * len(stripped):
            return f"repeated_{name}"
        if again_characters > most_characters * sum(map(len, stripped)):
            return f"characters_in_repeated_{name}"
    words = text.split()
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    numbers = hashes(words)
    for length, share in TOP_RUN_CHARACTERS.items():
        if _top_characters(numbers, lengths, length) > share * lengths.sum():
            return f"top_{length}_gram"
    for length, share in REPEATED_RUN_CHARACTERS.items():
        if _repeated_characters(numbers, lengths, length) > share * lengths.sum():
            return f"repeated_{length}_grams"
    return ""


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """(number of parts that repeat an earlier one, their characters)"""
    seen: set[str] = set()
    again = characters = 0
    for part in parts:
        if part in seen:
            again += 1
            characters += len(part)
        seen.add(part)
    return again, characters


def _top_characters(words: Hashes, lengths: np.ndarray, length: int) -> int:
    """Characters of the repeated n-gram whose occurrences have the most characters in all; 0 where none is
    repeated.
    """
    grams = runs(words, length)
    if not len(grams):
        return 0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    total = np.concatenate([[0], np.cumsum(lengths)])
    characters = (total[first + length] - total[first]) * counts
    return int(characters[counts > 1].max(initial=0))


def _repeated_characters(words: Hashes, lengths: np.ndarray, length: int) -> int:
    """Characters of the words that are part of an n-gram which repeats an earlier one."""
    grams = runs(words, length)
    _, first = np.unique(grams, return_index=True)
    if len(first) == len(grams):
        return 0
    again = np.ones(len(grams), bool)
    again[first] = False
    begins = np.flatnonzero(again)
    edges = np.zeros(len(words) + 1, np.int64)
    np.add.at(edges, begins, 1)
    np.add.at(edges, begins + length, -1)
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())


def c4(text: str) -> tuple[str, str]:
    """(the text without its bad lines, why the text is left out or "")."""
    lowered = text.lower()
    if "lorem ipsum" in lowered:
        return text, "lorem_ipsum"
    if "{" in text:
        return text, "curly_bracket"
    kept = [line for line in map(_without_citations, text.splitlines()) if _c4_line(line)]
    result = "\n".join(kept)
    if sum(result.count(mark) for mark in ".!?") < C4_LEAST_SENTENCES:
        return text, "few_sentences"
    return result, ""


def _without_citations(line: str) -> str:
    for mark in C4_CITATIONS:
        line = line.replace(mark, "")
    return line.strip()


def _c4_line(line: str) -> bool:
    lowered = line.lower()
    return (
        line.endswith(C4_LINE_ENDS)
        and not line.endswith(ELLIPSES)
        and len(line.split()) >= C4_LEAST_WORDS_A_LINE
        and "javascript" not in lowered
        and not any(policy in lowered for policy in C4_POLICIES)
    )

"""The steps that a tally counts, for people: their names in words, and the unit of their sizes."""

_WORDS = {
    "removed.binary": "left out: binary, no text",
    "removed.utf16_without_mark": "left out: looks like UTF-16 without a byte order mark (--encoding utf-16)",
    "removed.undecodable": "left out: not in the encoding (--encoding)",
    "removed.not_json": "left out: not JSON",
    "removed.not_a_json_object": "left out: JSON, but no object with fields",
    "removed.nested_too_deeply": "left out: damaged, nested too deeply",
    "removed.too_long_document": "left out: longer than --max-document-bytes",
    "removed.too_many_columns": "left out: a row of more columns than the header has",
    "removed.ids_not_integers": "left out: ids that are no integers",
    "removed.no_second_text": "left out: no text in the field of the second text (--second-field)",
    "removed.no_text_in_sample": "left out: no text in the sample",
    "removed.not_downloaded": "left out: a picture that was not downloaded, by the sample's status",
    "removed.no_picture": "left out: a picture that cannot be decoded",
    "removed.no_picture_in_row": "left out: no picture in --image-field",
    "removed.before_first_record": "left out: before the first record",
    "removed.no_tags": "left out: no words with a tag each",
    "removed.no_question": "left out: no question or no context",
    "removed.no_answers": "left out: no answers with their places",
    "removed.answer_elsewhere": "left out: the context does not have the answer at its place",
    "removed.no_messages": "left out: no messages",
    "removed.no_answer_in_messages": "left out: messages without one of the assistant",
    "removed.special_token_in_message": "left out: a message that holds a special token of the tokenizer",
    "removed.message_written_otherwise": "left out: the chat template rewrites a message once others follow",
    "removed.empty": "left out: nothing in it",
    "removed.too_short": "left out: shorter than --min-characters",
    "removed.too_long": "left out: longer than --max-characters",
    "removed.licence.not_stated": "left out: no licence stated",
    "removed.licence.not_allowed": "left out: another licence",
    "removed.contaminated": "left out: shares text with an evaluation file",
    "removed.duplicate": "left out: an exact copy",
    "removed.near_duplicate": "left out: nearly a copy",
    "changed.not_utf8": "changed: not UTF-8, so read as Windows-1252",
    "changed.broken_utf8": "changed: broken UTF-8, whose unreadable bytes became U+FFFD",
    "changed.not_unicode": "changed: what Unicode text cannot hold became U+FFFD",
    "changed.encoding_fixed": "changed: wrong decoding mended",
    "changed.normal_form": "changed: brought to the normal form",
    "changed.c4_lines": "changed: lines taken out by C4's rules",
    "changed.scrubbed": "changed: scrubbed",
    "changed.cut_long_document": "changed: a long sequence cut at --max-document-bytes",
    "changed.further_picture": "changed: one picture a document is kept, this one is not",
    "changed.padding_taken_off": "changed: padding of a row of ids taken off",
    "changed.separator_taken_off": "changed: the separator at the end of a row of ids taken off",
    "noted.no_caption": "taken as they are: pictures without a text",
    "noted.json_as_text": "read as text: a .json file that holds no rows",
    "noted.text_like_json_lines": "read as text, though it looks like lines of JSON (--format jsonl)",
    "noted.no_separator": "read as one document: --split-at never occurs in the file",
    "noted.no_class": "taken without a class: none is stated",
    "noted.unnamed_tags": "taken as they are: tags that are numbers without names (--tag-name)",
    "noted.words_without_token": "taken without the tag of a word of which the tokenizer makes no token",
    "noted.ids_of_no_text": "taken as they are: ids that stand for no text by this tokenizer",
    "noted.separator_in_ids": "taken as they are: ids with the separator in the middle of a row",
}
_LEFT_OUT = {
    "removed.gopher_quality.": "left out by Gopher's quality rules: ",
    "removed.gopher_repetition.": "left out by Gopher's repetition rules: ",
    "removed.c4.": "left out by C4's rules: ",
    "removed.language.": "left out: language ",
}

# Steps that a reader counts in bytes of the source: there is no text yet, or it was cut as bytes.
_IN_BYTES = (
    "removed.binary",
    "removed.utf16_without_mark",
    "removed.undecodable",
    "removed.not_json",
    "removed.not_a_json_object",
    "removed.nested_too_deeply",
    "removed.no_text_in_sample",
    "removed.not_downloaded",
    "removed.no_picture",
    "removed.no_picture_in_row",
    "changed.further_picture",
    "noted.no_caption",
    "removed.before_first_record",
    "changed.not_utf8",
    "changed.broken_utf8",
    "changed.cut_long_document",
    "noted.json_as_text",
    "noted.text_like_json_lines",
    "noted.no_separator",
)


def in_words(step: str, text_field: str) -> str:
    """The step in words: "removed.empty" → "left out: nothing in it".

    text_field: the recipe's, which one step names.
    """
    if step == "removed.no_text_field":
        return f"left out: no text in the field {text_field!r}"
    for prefix, words in _LEFT_OUT.items():
        if step.startswith(prefix):
            return words + step.removeprefix(prefix).replace("_", " ")
    return _WORDS.get(step, step.replace(".", ": ").replace("_", " "))


def unit_of(step: str) -> str:
    """The unit of a step's size in a tally: characters of text, or bytes of the source.

    A document that is too long is counted in bytes by the readers that see bytes, and in characters where a
    record's text was decoded already.
    """
    if step == "removed.too_long_document":
        return "bytes or characters"
    return "bytes" if step in _IN_BYTES else "characters"

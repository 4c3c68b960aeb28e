"""Documents whose tokens have marks: what a task asks for, token by token (`prepare --task`).

marks.py     marks of characters → marks of token ids
tags.py      words with a tag each (named entities, parts of speech)
answers.py   a question, a context, and the answer's place in it (SQuAD)
chat.py      messages and a chat template; the answers are marked
templates.py chat templates
rows.py      a document with marks → its ids and marks; long contexts in windows
records.py   which of them a record is

What the numbers mean is for each task its own; 0 means in all of them that nothing is asked of the token.
"""

"""Corpora that are made on the machine, from what every installation has: `germinal prepare embedded:NAME`.

    names.py         which there are, and the settings of `prepare` that go with each: begin here
    python_sources.py python, packages, docstrings: Python's standard library
    bytecode.py      bytecode: the same as it is compiled
    python_tasks.py  python_tags, python_answers, python_chats: tasks on it
    pictures.py      glyphs, digits: matplotlib's fonts
    proteins.py      proteins: a generator of sequences with planted motifs

A corpus's sources are written as files that anybody might have, and `prepare` reads them as such. They are
small, and the same on every machine with the same versions of Python, matplotlib and Pillow.
"""

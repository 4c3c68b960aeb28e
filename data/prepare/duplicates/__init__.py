"""Which documents are duplicates, found by tasks that any engine may run; no process holds all documents.

    shares of documents    neighbouring documents; a task each
    keys → exchange        each share sends its keys and gets back the first document of each key
    same.py                keys are hashes of the contents                    → exact duplicates
    near.py                keys are bands of the signatures → pairs that are similar
    connected.py           keys are documents of the pairs  → of all that pairs connect, the first
    find.py                the phases in order, and the verdicts     → OUT/.prepare/survey/duplicates/

Read `find.py` first, then `exchange.py`: the one shuffle that all three steps use. `shares.py` has the
documents of a share. Every task writes its files by a rename, and a task whose file is there is done: it may
be run twice, or at the same time on two machines.
"""

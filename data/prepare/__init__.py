"""`germinal prepare`: any sources → a tokenised, indexed, hashed corpus.

    SOURCE …                                     sources/            files, their kinds and encodings
       │
    units                                        units.py            ranges of files, one worker's work
       │                                         engines/            processes and machines that run them
       │   readers → documents → cleaning        readers/ cleaning/  document.py
       │
       ├── survey → spools → duplicates          survey.py spool.py  first pass, only if needed
       │                                         duplicates/
       │
       ├── encode → shards of each unit          encode.py           the pass that always is
       │
    finish → shards, data card, manifest         finish.py           last: the manifests

Read `prepare.py` first: the phases, in order. Then `recipe.py` (all settings), `preconditions.py` (what is
refused before any work), `command_record.py` (what a folder remembers of the command that makes it, so that
the same command goes on), `preparation.py` (what the work on a unit needs to know), `tally.py` (counts of
what happened to documents), `report/` (the progress bar and the data card) and `tasks/` (documents whose
tokens have marks, for fine-tuning).
"""

"""A checkpoint: written by all ranks, committed by one rename, verified, loaded, kept or deleted.

How a save becomes a checkpoint:

    every rank                              rank 0
    ──────────────────────────────────────  ───────────────────────────────────────────────────────────────
    .tmp-step-000000100-NONCE/
      rank-00001.safetensors  written,      rank-00000.safetensors likewise
        hashed on the way, fsync
      rank-00001.part.json    renamed into  waits for every part.json; writes state.json
        place: "my files are on disk"       parts → MANIFEST.json with its own hash; fsync of both
      waits for the commit                  rename .tmp-step-…-NONCE → step-000000100, fsync of the parent

A process that is killed before the rename leaves a folder `.tmp-…`, which the next start removes. A folder
without that prefix is whole.

What is on disk, without torch:
  manifest.py    MANIFEST.json: files with sizes and hashes, tensors with their stored chunks
  folder.py      the folder: names, commit, verify, delete, set aside
  newest.py      the newest checkpoint that verifies
Tensors in and out:
  store.py       chunks → safetensors files, hashed while written; stored chunks → chunks of any layout
  reader.py      safetensors files, mapped into memory
  finite.py      is every number that is saved finite?
  staging.py     the copy of the state that is written in the background
A load trusts the bytes. Hashes are checked before it, in `folder.verify`: `resume` and `go_back` call it
through newest.py.

A run's saves:
  manager.py     Checkpointer: when to save, and everything that the loop and the run call
  attempt.py     one save by many ranks, coordinated through the folder alone
  retention.py   which checkpoints stay
A run's start:
  resume.py      load the newest checkpoint, and report what changed since, also a learning rate that jumps
  go_back.py     an older checkpoint, where no step can be made from the newest
"""

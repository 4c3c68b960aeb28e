"""A checkpoint: written by all ranks, committed by one rename, verified, loaded, kept or deleted.

How a save becomes a checkpoint:

    every rank                              rank 0
    ──────────────────────────────────────  ───────────────────────────────────────────────────────────────
    .tmp-step-000000100-NONCE/
      rank-00001.safetensors  written,      rank-00000.safetensors likewise
        hashed on the way, fsync
    posts its part: "my files are           waits for every part; writes state.json
      on disk"                                parts → FILES.txt, and MANIFEST.json with its own hash; fsync
    waits for the verdict                   rename .tmp-step-…-NONCE → step-000000100, fsync of the parent
    reads what another rank wrote           posts the verdict; learns what verified, and deletes older ones

A process that is killed before the rename leaves a folder `.tmp-…`, which the next start removes. A folder
without that prefix is whole.

What is on disk, without torch:
  pieces/        how a tensor is cut, which rank stored each piece, and in which files
  manifest.py    MANIFEST.json: the tensors, how they are cut, and what proves the files
  merge.py       what each rank wrote → what the checkpoint holds
  vectors.py     the same of vectors of tensors that are cut into equal parts
  folder.py      the folder: names, commit, verify, delete, set aside
  newest.py      the newest checkpoint that verifies
Tensors in and out:
  store.py       chunks → safetensors files, hashed while written; stored chunks → chunks of any layout
  description.py what a rank wrote, as its part of the manifest
  reader.py      safetensors files, mapped into memory
  loading.py     loading and proving in one pass
  finite.py      is every number that is saved finite?
`store.load` trusts the bytes: whoever calls it has found by newest.py that they verify. `resume` and
`go_back` prove them while they load.

A run's saves:
  manager.py     Checkpointer: when to save, and everything that the loop and the run call
  saving/        one save by many ranks, its verification, and which checkpoints stay
A run's start:
  resume.py      load the newest checkpoint, and report what changed since, also a learning rate that jumps
  go_back.py     an older checkpoint, where no step can be made from the newest
"""

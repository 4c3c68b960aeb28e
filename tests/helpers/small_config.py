"""The text of a small config file."""

YAML = """
name: tiny
model: {layers: 2, hidden: 64, heads: 4, vocab: 512}
data:
  sources: [{path: corpora/code, weight: 3}, {path: corpora/prose}]
  heldout: [{path: corpora/held}]
  seq_len: 64
train: {steps: 10, global_batch: 8, micro_batch: 2}
checkpoint: {every: 5, async: false}
"""

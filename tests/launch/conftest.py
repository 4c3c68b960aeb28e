"""A config for tests of commands, which needs no training."""

from pathlib import Path

import pytest

from data.corpus.manifest import Manifest, ShardEntry, TokenizerEntry, write_manifest

CONFIG = """
name: tiny
model: {{layers: 2, hidden: 64, heads: 4, vocab: 512}}
data: {{sources: [{{path: {corpus}}}], seq_len: 64}}
train: {{steps: 4, global_batch: 8, micro_batch: 2}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A config whose corpus has a tokenizer of 300 tokens, and states one document that is not there."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    tokenizer = TokenizerEntry("tokenizer.json", "0" * 64, 300, 0)
    shard = ShardEntry("shard-000000.tar", 0, "0" * 64, 1, 8, 8, "0" * 32)
    write_manifest(corpus, Manifest(tokenizer, "uint16", 64, (shard,)))
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG.format(corpus=corpus))
    return str(file)

"""A trained run and its corpus, made once."""

from pathlib import Path

import pytest

from whole_runs import make_corpus, train_here, write_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus/ and the run folder run/, of two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(
        folder, make_corpus(folder), train__steps=6, train__eval_every=3, checkpoint__every=3
    )
    assert train_here(config)
    return folder

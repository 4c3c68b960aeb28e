"""A small run with checkpoints of steps 2 and 4, for tests that look into it."""

from pathlib import Path

import pytest

from whole_runs import make_corpus, train_here, write_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the run."""
    folder = tmp_path_factory.mktemp("debugged")
    config = write_config(
        folder, make_corpus(folder), train__steps=4, train__eval_every=0, checkpoint__every=2
    )
    assert train_here(config)
    return config

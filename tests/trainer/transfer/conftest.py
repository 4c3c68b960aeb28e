"""What tests of comparisons share: a corpus of pictures, and one process's runtime."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from few_trials import prepare_pictures
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_pictures(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    runtime = runtimes.start()
    yield runtime
    runtime.stop()

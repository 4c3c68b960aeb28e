"""What tests of a cluster share: one SLURM a session, and what it needs to be there."""

from collections.abc import Iterator

import pytest

import slurm as slurms
from slurm import Slurm


@pytest.fixture(scope="session")
def whole_session_slurm() -> Iterator[Slurm]:
    if why := slurms.missing():
        pytest.skip(why)
    with slurms.running() as slurm:
        yield slurm


@pytest.fixture
def slurm(whole_session_slurm: Slurm) -> Iterator[Slurm]:
    """A SLURM of two nodes whose names resolve and two whose names do not, all of them idle."""
    yield whole_session_slurm
    whole_session_slurm.tidy()

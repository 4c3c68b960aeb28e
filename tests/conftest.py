"""What every test may ask for. helpers/ranks.py explains the pools of processes for distributed tests."""

import os
from collections.abc import Iterator

# Before torch is imported anywhere: tests are small, and several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# gloo finds its interface by the host's name, which a container often cannot resolve.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest

from ranks import RankPools, share_cores

share_cores()


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPools]:
    """`ranks(world).run(function, *args) -> [result of rank 0, …]`; see helpers/ranks.py."""
    pools = RankPools()
    yield pools
    pools.close()

"""What every test may ask for. helpers/ranks.py explains the pools of processes for distributed tests."""

import os
import signal
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

# A suite that runs under nohup or in a script's background has these ignored, and so would every process have
# that a test starts and sends one to.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPools]:
    """`ranks(world).run(function, *args) -> [result of rank 0, …]`; see helpers/ranks.py."""
    pools = RankPools()
    yield pools
    pools.close()

"""The all-reduce over all ranks of all nodes, as a run would make it."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.doctor.check import Circumstances
from launch.doctor.checks.measures import local_ranks
from launch.doctor.finding import Finding, error, ok
from launch.doctor.nodes.listener import Peer, reach
from launch.job import DOCTOR, python

RANKS_SECONDS = 50.0


def over_nodes(peers: Sequence[Peer], message: Mapping[str, Any], at: Circumstances) -> Iterator[Finding]:
    """Start this node's ranks and wait for them; the first node's finding has the bandwidth.

    peers: the first node.
    message: `node`, this node's number; `nodes`, how many there are; `port`, free on the first node.
    """
    (first,) = peers
    try:
        connection, address = reach(first, first.addresses)
    except OSError:  # `connect` has told of it
        return
    connection.close()
    count, node = local_ranks(at.environ), int(message["node"])
    world = count * int(message["nodes"])
    ranks = []
    for local in range(count):
        env = {
            "RANK": str(node * count + local),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(message["port"]),
            "OMP_NUM_THREADS": "1",
        }
        ranks.append(
            subprocess.Popen(
                python(DOCTOR, "nodes"),
                env={key: value for key, value in os.environ.items() if key != "GERMINAL_INIT"} | env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outcomes = [rank.communicate(timeout=RANKS_SECONDS) for rank in ranks]
    except subprocess.TimeoutExpired:
        text = (
            f"{world} ranks on {message['nodes']} nodes did not get an all-reduce done in {RANKS_SECONDS:g} s"
        )
        yield error(
            "speed.nodes", text, "see the connections above; NCCL_DEBUG=INFO tells which network NCCL takes"
        )
        return
    failed = [outcome[1] for rank, outcome in zip(ranks, outcomes) if rank.returncode]
    if failed:
        last = (failed[0].strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        yield error(
            "speed.nodes", f"an all-reduce over {world} ranks failed: {last}", "mend what the message names"
        )
    elif node == 0:
        found = json.loads(outcomes[0][0].strip().splitlines()[-1])
        rate = found["all_reduce_bytes_per_second"]
        text = f"all-reduce over {world} ranks on {message['nodes']} nodes by {found['backend']}"
        yield ok("speed.nodes", f"{text}: {rate / 1e9:.3g} GB/s bus bandwidth")

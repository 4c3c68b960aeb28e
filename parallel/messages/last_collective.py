"""The collectives that this rank has begun and not finished, from torch's flight recorder: a ring of the last
2,000 calls on each process group, which NCCL's groups keep, and from torch 2.11 on gloo's too.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from parallel.relied_on import borrow

_MODULE = "torch._C._distributed_c10d"
# NCCL's; then all backends'. Which of them there are depends on how torch was built.
_DUMPS = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
MOST = 4  # under way at the same time on different groups, or one after the other on a device


def unfinished() -> list[str]:
    """Describe the oldest collective of each process group that has begun and not finished, `MOST` at most.
    Empty where there is none, or where torch has no recorder.

    From any thread, while others are in a collective.
    """
    found: dict[str, None] = {}
    for name in _DUMPS:
        # Missing in this build of torch; or a record in another form than today's.
        with contextlib.suppress(ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError):
            dump = borrow("torch", _MODULE, name)
            found |= dict.fromkeys(describe(json.loads(dump(includeCollectives=True)).get("entries", ())))
    return list(found)[:MOST]


def describe(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Describe the oldest unfinished collective of each group among a recorder's entries, oldest first."""
    oldest: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if entry["state"] != "completed" and not entry["retired"]:
            oldest.setdefault(str(entry["process_group"]), entry)
    return [_line(entry) for entry in oldest.values()]


def _line(entry: Mapping[str, Any]) -> str:
    """`gloo:broadcast number 17 of group 0 (default_pg), in [[4]] Float`."""
    name, description = (*entry["process_group"], "", "")[:2]
    number = entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]
    sizes, types = entry["input_sizes"], dict.fromkeys(entry["input_dtypes"])
    group = f"{name} ({description})" if description not in ("", "undefined") else name
    return f"{entry['profiling_name']} number {number} of group {group}, {sizes} {' '.join(types)}".strip()

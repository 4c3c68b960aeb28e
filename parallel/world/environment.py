"""Environment variables for libraries that take their settings in no other way."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def environment(values: Mapping[str, str], *, programs: Path | None = None) -> Iterator[None]:
    """Set variables, and put the folder `programs` first on the PATH; restore all of them afterwards."""
    values = dict(values)
    if programs is not None:
        values["PATH"] = os.pathsep.join((str(programs), os.environ.get("PATH", os.defpath)))
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def use_interface(name: str) -> None:
    """Have gloo and NCCL connect over a network interface, in every group that is made from now on; an empty
    name, or a variable that the user has set, leaves the choice as it is.

    Left alone, gloo takes the interface of the address that the machine's own name has, which on Debian is
    127.0.1.1, and NCCL the first that is up. NCCL_SOCKET_IFNAME without "=" would be the beginning of a name.
    """
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def connect_when_needed() -> None:
    """Have gloo connect two ranks at their first message, in every group made from now on.

    Otherwise each group begins with a connection between any two of its ranks: half a million of them for the
    world's group of 1,024 ranks, of whose sums each rank sends to a few neighbours.
    """
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")

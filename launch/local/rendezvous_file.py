"""The file at which the ranks of one machine meet."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def rendezvous_file() -> Iterator[str]:
    """Yield the path of a file, for one start of the ranks alone, at which they meet.

    On Linux the file is in no folder: it ends with this process, however this process ends.
    """
    if sys.platform == "linux":
        with open(os.memfd_create("rendezvous"), "rb") as file:
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="germinal-") as folder:
            yield f"{folder}/rendezvous"

"""Ends of this process from outside the main thread, which may wait in a collective. Torch-free."""

import contextlib
import os
import threading
import time
from typing import NoReturn

from common.exit_codes import FAILED

_PARENT_SECONDS = 2.0


def end_process(why: str, code: int) -> NoReturn:
    """Write one line and end this process at once, from any thread."""
    with contextlib.suppress(OSError):  # the reader of standard error may have gone
        os.write(2, f"error: {why}\n".encode())
    os._exit(code)


def end_with_parent(rank: int) -> None:
    """Start a thread that ends this process when its parent, the launcher, has ended."""

    def watch() -> None:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        end_process(
            f"rank {rank}: its launcher (process {parent}) is gone, and so nobody watches over it", FAILED
        )

    threading.Thread(target=watch, name="parent", daemon=True).start()

"""The socket at which other ranks come to rank 0, and what rank 0 does when it can let no more in. Imports no
torch.
"""

import errno
import resource
import selectors
import socket
import time

from common.standard_error import write_line
from parallel.world.wire import Connection

# This process, or the system, has no room for one more connection.
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY_SECONDS = 1.0


class Entrance:
    """Rank 0's listening socket in its `selector`, into which the connections go that it lets in.

    host, world: rank 0's machine and the number of ranks, for the line that says that there is no room.
    """

    def __init__(
        self, server: socket.socket, selector: selectors.BaseSelector, host: str, world: int
    ) -> None:
        self.server = server
        self._selector, self._host, self._world = selector, host, world
        self._again_at: float | None = None  # time.monotonic; None: in the selector
        self._has_said = False
        server.setblocking(False)  # who connected may have hung up before it is let in
        selector.register(server, selectors.EVENT_READ)

    def let_in(self) -> None:
        """Let in one process that connects. Where there is no room, say so once and look away for a while:
        the socket would stay ready, and the thread that serves the ranks would do nothing else.
        """
        try:
            accepted = self.server.accept()[0]
        except OSError as error:
            if error.errno in _FULL:
                self._say(error)
                self._selector.unregister(self.server)
                self._again_at = time.monotonic() + RETRY_SECONDS
            return
        try:
            peer = Connection(accepted)
        except OSError:  # it has hung up
            accepted.close()
            return
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    def pause_seconds(self) -> float | None:
        """How long the selector may wait for the connections alone; None: until something comes."""
        if self._again_at is None:
            return None
        left = self._again_at - time.monotonic()
        if left > 0:
            return left
        self._again_at = None
        self._selector.register(self.server, selectors.EVENT_READ)
        return None

    def close(self) -> None:
        """Let nobody in any more, and close the connections of those that are no ranks."""
        if self._again_at is None:
            self._selector.unregister(self.server)
        self.server.close()
        for key in tuple(self._selector.get_map().values()):
            if isinstance(key.data, Connection) and not key.data.is_member:
                self._selector.unregister(key.fileobj)
                key.data.close()

    def _say(self, error: OSError) -> None:
        if self._has_said:
            return
        self._has_said = True
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        write_line(
            f"rank 0 on {self._host} cannot let more ranks in: {error.strerror} (it may open {soft} files, "
            f"at most {hard}, and needs one for each of {self._world} ranks besides its own). "
            "Raise `ulimit -n`; it tries again every second"
        )

"""Where the ranks of one machine meet: a socket that listens before any rank asks for it."""

import socket


def meeting_socket(ranks: int) -> socket.socket:
    """Return a socket that listens on the loopback interface, at a port that the system chooses; to be closed
    when the ranks have ended. Every start of the ranks takes a new one.
    """
    return socket.create_server(("127.0.0.1", 0), backlog=max(128, ranks))

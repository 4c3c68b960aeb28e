"""Text from files and other programs, made fit for a terminal."""


def printable(text: str) -> str:
    """Return the text with every character that does not print written as its escape, such as \\x1b: a
    terminal obeys what an escape sequence says.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

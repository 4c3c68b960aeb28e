"""A scrub hook that is at hand: `--scrub-hook data.scrub:contacts`. Recipes and corpora name it so."""

import re

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_ADDRESS = re.compile(rf"(?<![\d.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\d.])")


def contacts(text: str) -> str:
    """Replace e-mail and IPv4 addresses by `<email>` and `<ip>`, as RefinedWeb and FineWeb do."""
    return _ADDRESS.sub("<ip>", _EMAIL.sub("<email>", text))

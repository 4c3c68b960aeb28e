"""What a check found: one line that says it, and one line that says what to do."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


class Level(enum.IntEnum):
    """How much a finding matters; only an error makes `germinal doctor` fail."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    check: subject and item, such as `folder.fsync`.
    level: how much it matters.
    found: one line: what, where, with the figure.
    remedy: one line: what to do. Empty only where everything is well.
    host: the node on which it was found; empty where the doctor looks at one machine, or at all together.
    measured: figures by name; nodes are compared by them.
    same: facts that have to be the same on every node, by name.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""
    host: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.remedy or self.level == Level.OK, f"{self.check} has no remedy"
        assert "\n" not in self.found + self.remedy, f"{self.check} has more than one line"

    def at(self, host: str) -> "Finding":
        """Return the same finding with the node on which it was made."""
        return replace(self, host=host)

    def document(self) -> dict[str, Any]:
        """Return the finding as JSON can hold it."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"level": str(self.level), "measured": dict(self.measured), "same": dict(self.same)}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Finding":
        """Return the finding whose `document` this is."""
        return cls(**{**document, "level": Level[document["level"].upper()]})


def one_line(text: object) -> str:
    """Return a text with each run of white space as one blank."""
    return " ".join(str(text).split())


def ok(check: str, found: str, **more: Any) -> Finding:
    return Finding(check, Level.OK, one_line(found), **more)


def note(check: str, found: str, remedy: str, **more: Any) -> Finding:
    return Finding(check, Level.NOTE, one_line(found), one_line(remedy), **more)


def warning(check: str, found: str, remedy: str, **more: Any) -> Finding:
    return Finding(check, Level.WARNING, one_line(found), one_line(remedy), **more)


def error(check: str, found: str, remedy: str, **more: Any) -> Finding:
    return Finding(check, Level.ERROR, one_line(found), one_line(remedy), **more)


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level among `findings`."""
    return max((finding.level for finding in findings), default=Level.OK)

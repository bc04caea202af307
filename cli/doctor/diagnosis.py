"""What the doctor finds: one thing, how it is, and how to mend it."""

from dataclasses import dataclass
from enum import Enum


class Condition(Enum):
    """How a thing is."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined. `mend` says what to do where it is not good, or may yet turn out not to be."""

    condition: Condition
    what: str
    mend: str = ""


def good(what: str, should_it_not_be: str = "") -> Finding:
    """It is well, as far as can be seen from here."""
    return Finding(Condition.GOOD, what, should_it_not_be)


def bad(what: str, mend: str) -> Finding:
    """It is not, and this mends it."""
    return Finding(Condition.BAD, what, mend)


def unknown(what: str, mend: str = "") -> Finding:
    """It could not be found out."""
    return Finding(Condition.UNKNOWN, what, mend)


def warning(what: str, mend: str) -> Finding:
    """It is well now, and will not stay so unless this is done."""
    return Finding(Condition.WARNING, what, mend)

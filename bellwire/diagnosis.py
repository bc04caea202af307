"""What the doctor finds: one thing, how it is, and how to mend it."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How a thing is."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined. `mend` says what to do where it is not good."""

    verdict: Verdict
    what: str
    mend: str = ""


def good(what: str) -> Finding:
    """It is well."""
    return Finding(Verdict.GOOD, what)


def bad(what: str, mend: str) -> Finding:
    """It is not, and this mends it."""
    return Finding(Verdict.BAD, what, mend)


def unknown(what: str, mend: str = "") -> Finding:
    """It could not be found out."""
    return Finding(Verdict.UNKNOWN, what, mend)

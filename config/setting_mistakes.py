"""What is wrong with a setting, in the words of who writes it, not of the library that has read it. By
itself, since each command needs it and not all of them read settings."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_PINS = ("pin", "rows", "columns")
_OUT_OF_RANGE = ("less_than_equal", "greater_than_equal")


def mistake_in_words(problem: "ErrorDetails", known: Collection[str] = ()) -> str:
    """One mistake: its place, and what is wrong. `known` are the settings that there are at the top."""
    place = ".".join(map(str, problem["loc"]))
    what = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = get_close_matches(place, known, n=1)
        what = f"there is no such setting{f'; did you mean `{near[0]}`?' if near else ''}"
    elif problem["type"] in ("tuple_type", "list_type"):
        what = 'it must be a list, such as ["one", "another"]'
    elif problem["type"] in _OUT_OF_RANGE and any(part in _PINS for part in problem["loc"]):
        what = "there is no such pin: pins are BCM numbers, 0 to 27"
    return f"{place}: {what}" if place else what

"""`twi_params`: a string-to-string map as a query string in a push payload.

Values are percent-encoded UTF-8, names travel as they are (seed 000, TVOCallInvite
`customParameters`). Encoding writes `%20`, because some readers take `+` for a plus;
decoding takes both.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated
from urllib.parse import quote, unquote_plus

from pydantic import AfterValidator

from bellwire.signaling.errors import InvalidInput

# Printable ASCII without space, and without what a query string gives a meaning.
_NAME = re.compile(r"[!\"$'-*,-<>-~]+")

MAX_PARAMETERS = 64
MAX_NAME_LENGTH = 128


def check_name(name: str) -> str:
    """The name, if it may be a custom parameter's.

    Raises:
        InvalidInput: it is empty, over 128 characters, not printable ASCII, or holds `& = % + #`
            or white space.
    """
    if not name:
        raise InvalidInput("a custom parameter's name must not be empty")
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidInput(
            f"custom parameter name {name[:20]!r}... is over {MAX_NAME_LENGTH} characters"
        )
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"custom parameter name {name!r} must be printable ASCII without spaces and without & = % + #"
        )
    return name


def unique_parameters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """An ordered map of the pairs.

    Raises:
        InvalidInput: a name stands twice or is not allowed, or there are over 64.
    """
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters:
            raise InvalidInput(f"custom parameter {name!r} is given twice")
        parameters[name] = value
    return check_parameters(parameters)


def check_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters, if all of them can travel.

    Raises:
        InvalidInput: a name is not allowed, a value is not Unicode text (a lone surrogate), or
            there are over 64.
    """
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidInput(
            f"{len(parameters)} custom parameters are over the limit of {MAX_PARAMETERS}"
        )
    for name, value in parameters.items():
        check_name(name)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInput(f"the value of custom parameter {name!r} is not valid Unicode")
    return dict(parameters)


def encode_params(parameters: Mapping[str, str]) -> str:
    """The map as `key1=value1&key2=value2`, in its order.

    Raises:
        InvalidInput: as `check_parameters`.
    """
    return "&".join(
        f"{name}={quote(value, safe='')}" for name, value in check_parameters(parameters).items()
    )


def decode_params(text: str) -> dict[str, str]:
    """The map in a query string; of a name that stands twice the last value wins.

    Reading is lenient, since the text may come from another system: a part without `=` has the
    empty value, a malformed `%` stays as it is, and bytes that are no UTF-8 become U+FFFD.
    """
    parameters: dict[str, str] = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        if name:
            parameters[name] = unquote_plus(value)
    return parameters


CustomParameters = Annotated[dict[str, str], AfterValidator(check_parameters)]

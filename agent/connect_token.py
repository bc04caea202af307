"""The connect token of a call (seed 003, connectToken): what a device needs to know to come back into
it. It is no secret, and gives no right: the relay knows each device by its own credentials."""

import base64
import binascii
import json

from signaling.errors import InvalidInput
from signaling.identifiers import CallSid, parse_call_sid


def write_token(sid: CallSid, custom_parameters: dict[str, str]) -> str:
    """The token of a call."""
    named = {"call_sid": sid, "custom_parameters": custom_parameters}
    return base64.urlsafe_b64encode(json.dumps(named).encode()).decode()


def read_token(connect_token: str) -> tuple[CallSid, dict[str, str]]:
    """The call and its custom parameters.

    Raises:
        InvalidInput: it is no such token.
    """
    try:
        named = json.loads(base64.urlsafe_b64decode(connect_token))
        sid = parse_call_sid(named["call_sid"])
        parameters = {str(name): str(value) for name, value in named["custom_parameters"].items()}
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("this is no connect token of a call") from error
    return sid, parameters

"""Twilio's signature of a request (https://www.twilio.com/docs/usage/security): HMAC-SHA1, by the
account's auth token, of the URL and, where the body is a form, of its parameters."""

import base64
import hmac
from collections.abc import Mapping


def sign(auth_token: str, url: str, form: Mapping[str, str] | None = None) -> str:
    """The `X-Twilio-Signature` of a request.

    Args:
        auth_token: What the other side knows too.
        url: The whole URL, with its query.
        form: The parameters in the body; None where it has none, or is no form.
    """
    fields = "".join(name + value for name, value in sorted((form or {}).items()))
    signed = hmac.digest(auth_token.encode(), (url + fields).encode(), "sha1")
    return base64.b64encode(signed).decode()

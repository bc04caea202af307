"""What is wrong in the settings of a relay is said before it has started or made anything."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bellwire.config.relay import RelaySettings
from bellwire.push.relay import serve
from bellwire.signaling.errors import InvalidInput

WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"webhooks": {"a": {"url": "https://10.1.2.3/"}}}, "webhooks.a.allow_private_network"),
        ({"webhooks": {"a": {"url": "http://a.example/"}}}, "for private networks only"),
        ({"twilio_auth_token_file": "missing"}, "twilio_auth_token_file.*No such file"),
        ({"turn_urls": ["turn:a"], "turn_secret_file": "missing"}, "turn_secret_file.*No such"),
        ({"turn_urls": ["turn:a"], "turn_secret": "short"}, "turn_secret must hold at least 16"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_relay_that_cannot_serve_starts_no_broker_and_makes_no_data_directory(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(WHSEC)
    secret.chmod(0o600)
    for target in given.get("webhooks", {}).values():
        target["secret_file"] = secret
    data = tmp_path / "relay"
    settings = RelaySettings(listen="127.0.0.1:0", data=data, **given)
    with pytest.raises(InvalidInput, match=said):
        await serve(settings, asyncio.Event())
    assert not data.exists()

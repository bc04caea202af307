"""The code that docs/webhooks.md gives to backend developers takes what the relay sends, only that."""

import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.webhook.channel import read_target
from bellwire.push.delivery.webhook_events import Webhooks
from tests.docs.documents import ROOT, blocks
from tests.push.webhook_receiver import OTHER_SECRET, SECRET, target

BODY = '{"type":"call.ended","data":{"from":"client:Zoë"}}'.encode()
SHOWN = {block.kind: block.text for block in blocks(ROOT / "docs/webhooks.md")}


@pytest.fixture
def signed(tmp_path: Path) -> Callable[..., dict[str, str]]:
    def sign(*secrets: str, age_s: float = 0) -> dict[str, str]:
        relay = read_target("billing", target(tmp_path, "http://127.0.0.1/", *secrets))
        return relay.sign("CA-1", datetime.now(UTC) - timedelta(seconds=age_s), BODY)

    return sign


def test_the_python_shown_takes_what_is_signed_and_nothing_else(
    signed: Callable[..., dict[str, str]],
) -> None:
    names: dict[str, Any] = {}
    exec(compile(SHOWN["python"], "docs/webhooks.md", "exec"), names)  # noqa: S102 - our own text
    read_event = names["read_event"]
    assert read_event(SECRET, signed(), BODY) == json.loads(BODY)
    assert read_event(SECRET, signed(OTHER_SECRET, SECRET), BODY) == json.loads(BODY)
    for headers, body in (
        (signed(OTHER_SECRET), BODY),
        (signed(age_s=310), BODY),
        (signed(), BODY + b" "),
    ):
        with pytest.raises(WebhookVerificationError):
            read_event(SECRET, headers, body)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_node_shown_takes_what_is_signed_and_nothing_else(
    signed: Callable[..., dict[str, str]],
) -> None:
    cases = [
        (signed(), BODY),
        (signed(OTHER_SECRET, SECRET), BODY),
        (signed(OTHER_SECRET), BODY),
        (signed(age_s=310), BODY),
        (signed(), BODY + b" "),
        (signed() | {"webhook-timestamp": "soon"}, BODY),
    ]
    asked = json.dumps([[SECRET, headers, body.decode()] for headers, body in cases])
    script = f"""{SHOWN["javascript"]}
    console.log(JSON.stringify({asked}.map(([secret, headers, body]) => {{
      try {{ return readEvent(secret, headers, Buffer.from(body)).type; }}
      catch (error) {{ return error.message; }}
    }})));"""
    node = subprocess.run(
        ["node", "-"],  # noqa: S607
        input=script,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    unsigned, stale = "not signed by the relay", "too old or too new"
    assert json.loads(node.stdout) == [
        "call.ended",
        "call.ended",
        unsigned,
        stale,
        unsigned,
        stale,
    ]


def test_the_settings_shown_are_settings(tmp_path: Path) -> None:
    (settings,) = tomllib.loads(SHOWN["toml"])["webhooks"].values()
    secret_file = tmp_path / "secret"
    secret_file.write_text(SECRET)
    shown = WebhookTarget.model_validate({**settings, "secret_file": secret_file})
    read_target("billing", shown)
    Webhooks({"billing": shown}, now=lambda: datetime.now(UTC))

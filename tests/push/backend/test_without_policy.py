"""A relay with a voice URL and no call policy: nobody is rung, or joined, whom the backend has not named."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bellwire.config.call_policy import PolicySettings
from bellwire.config.relay import RelaySettings
from tests.push.backend.test_voice_url import caller_over, dialing
from tests.push.support import Running, assert_problem, fresh, listening, states
from tests.push.twiml_backend import AUTH_TOKEN, TwimlBackend, twiml_backend

in_module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there() -> AsyncIterator[TwimlBackend]:
    async with twiml_backend() as here:
        yield here


@pytest.fixture(scope="module")
def settings(there: TwimlBackend, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    token: Path = tmp_path_factory.mktemp("secrets") / "auth-token"
    token.write_text(AUTH_TOKEN)
    return {
        "BELLWIRE_VOICE_URL": f"{there.url}/voice",
        "BELLWIRE_VOICE_URL_ALLOW_PRIVATE_NETWORK": "true",
        "BELLWIRE_TWILIO_AUTH_TOKEN_FILE": str(token),
    }


@in_module
async def test_app_invites_and_joins_nobody_whom_the_backend_has_not_named(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    there.voice[bob] = dialing(bob)
    async with (
        listening(running, bob),
        listening(running, carol) as at_carol,
        caller_over("http", running, alice) as caller,
    ):
        _, call = await caller.ask("invite", to=[bob], mode="advanced")
        sid = call["call_sid"]
        for whose, path, body in (
            (alice, "invite", {"to": [carol]}),
            (carol, "join", {}),
        ):
            answer = await running.http.post(
                f"/v1/calls/{sid}/{path}",
                json={**body, "device_id": whose},
                headers=await running.token(whose),
            )
            assert_problem(answer, 403, "forbidden")
        assert not [e for e in at_carol.events if e["call_sid"] == sid]
    assert set(states(await running.call(sid))) == {alice, bob}


@pytest.mark.parametrize(
    ("voice_url", "policy", "default"),
    [
        ("https://b.example/voice", PolicySettings(), "deny"),
        ("https://b.example/voice", PolicySettings(default="allow"), "allow"),
        (None, PolicySettings(), "allow"),
    ],
)
def test_with_a_voice_url_who_fits_no_rule_is_let_in_only_where_that_is_written(
    voice_url: str | None, policy: PolicySettings, default: str, tmp_path: Path
) -> None:
    settings = RelaySettings(
        voice_url=voice_url, policy=policy, twilio_auth_token_file=tmp_path / "token"
    )
    assert settings.policy_in_force.default == default

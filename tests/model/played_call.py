"""One call of an example: what the relay says of it, and what the model says must be there."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bellwire.signaling.calls.events import rfc3339
from tests.model.client import Town
from tests.signaling.call_model import Model


@dataclass
class PlayedCall:
    """A call that was made, with the request that made it."""

    sid: str
    model: Model
    caller: str | None
    by: tuple[str, str | None] | None
    body: dict[str, Any]
    key: str | None
    made_at: datetime
    operations: int = 0
    withdrawn: bool = False
    """Whether its caller went offline before anybody accepted."""

    def expected(self) -> dict[str, Any]:
        """The call as the model says it is now."""
        model = self.model
        return {
            "call_sid": self.sid,
            "state": model.call_state,
            "mode": self.body["mode"],
            "call_type": self.body["call_type"],
            "from": self.caller,
            "custom_parameters": self.body["custom_parameters"],
            "created_at": rfc3339(self.made_at),
            "expires_at": rfc3339(max(model.until.values())),
            "users": {who: (state, model.main[who]) for who, state in model.of.items()},
        }


def shown_call(document: dict[str, Any], town: Town) -> dict[str, Any]:
    """What the relay says of a call, in the names of the example."""
    users = {
        (who := town.name_of(user["identity"])): (
            user["state"],
            town.device_name(who, user["main_device"]),
        )
        for user in document["users"]
    }
    assert len(users) == len(document["users"]), "a user stands twice"
    caller = document["from"]
    kept = (
        "call_sid",
        "state",
        "mode",
        "call_type",
        "custom_parameters",
        "created_at",
        "expires_at",
    )
    return {name: document[name] for name in kept} | {
        "from": None if caller is None else town.name_of(caller),
        "users": users,
    }


def unreachable_in(document: dict[str, Any], town: Town) -> dict[str, str]:
    """Who could not be invited, and why."""
    return {town.name_of(one["identity"]): one["reason"] for one in document["error_invitees"]}

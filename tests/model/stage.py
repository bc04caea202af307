"""What the steps of a random town are made of: each is played to the model and to the relay, and what
comes of it is compared. `random_town` says which steps there are."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import Engine

from bellwire.signaling.calls.calls import Mode
from tests.model.client import Town, until
from tests.model.clocked_relay import NOT_RECEIVED_AFTER_S, ClockedRelay
from tests.model.played_call import PlayedCall, shown_call, unreachable_in
from tests.signaling.call_model import GONE, MAX_INVITEES, MAX_USERS, Expected, Model, Verdict

DEAF, NOBODY = "deaf", "nobody"
"""Somebody whose device has no channel, and somebody who has no device."""

_STATUS = {Verdict.FORBIDDEN: 403, Verdict.INVALID: 422, Verdict.REFUSED: 409}
_CODES = {
    "state": 31403,
    "cancelled": 31008,
    "ended": 31487,
    "timed-out": 31487,
    "not-main-device": 31403,
}
_TOKENS_FORGOTTEN_AFTER = timedelta(minutes=1)

Part = tuple[str, int]
"""Somebody by the part that they have in a call: which part, and which of those who have it."""


class Stage(RuleBasedStateMachine):
    """The calls of one example. `count` is called for each step that is played."""

    def __init__(self, relay: ClockedRelay, view: Engine, count: Callable[[str], None]) -> None:
        super().__init__()
        self.relay = relay
        self.count = count
        self.town = Town(relay, view)
        self.calls: list[PlayedCall] = []
        self.groups: dict[str, list[str]] = {}
        self.again: Callable[[], None] | None = None
        self._reach: dict[str, str | None] = {NOBODY: "unknown"}
        self._time_has_passed = False

    def teardown(self) -> None:
        self.town.close()

    # Choosing.

    @property
    def living(self) -> list[PlayedCall]:
        return [call for call in self.calls if not call.model.ended]

    def call_of(self, which: int) -> PlayedCall:
        """One of the calls, as a rule one that has not ended."""
        calls = (self.living if which % 6 else self.calls) or self.calls
        return calls[which % len(calls)]

    def somebody(self, call: PlayedCall, part: Part, people: list[str]) -> str:
        """Who has this part in the call, where anybody has."""
        kind, number = part
        of = call.model.of
        having = {
            "invited": call.model.invited,
            "inside": call.model.inside,
            "gone": {one for one, state in of.items() if state in GONE},
            "caller": {call.caller} - {None},
            "user": set(of),
            "outside": set(people) - set(of),
            "anybody": set(people),
        }[kind]
        found = sorted(one for one in having if one is not None) or people
        return found[number % len(found)]

    def why_not(self, name: str) -> str | None:
        """Why somebody cannot be invited, None if it can; who is first spoken of gets a device."""
        if name not in self._reach:
            self.has_device(name, None if name != DEAF else "no_device")
        return self._reach[name]

    def has_device(self, name: str, why_not: str | None) -> None:
        """Sees to it that somebody can, or cannot, be invited."""
        if why_not != "unknown":
            self.town.register(name, "phone", *([] if why_not else ["websocket"]))
        elif self._reach.get(name, "unknown") != "unknown":
            self.town.unregister(name, "phone")
        self._reach[name] = why_not

    def token_of(self, who: str | None, device: str | None) -> tuple[str, str | None] | None:
        """Whose token asks, if somebody can have one; else a server asks in their name."""
        if who is None:
            return None
        self.why_not(who)
        return (who, device) if self.town.may_have_token(who, device) else None

    def is_server(self, who: str | None, device: str | None, *, by_token: bool) -> bool:
        """Whether a server asks in somebody's name."""
        return not by_token or self.token_of(who, device) is None

    # Making calls.

    def makes(
        self,
        caller: str | None,
        device: str | None,
        to: list[str] | dict[str, str],
        more: dict[str, Any],
        *,
        by_token: bool,
        key: str | None,
    ) -> None:
        """Makes a call, if it can be made."""
        body = {"mode": "common", "call_type": "audio", "custom_parameters": {}, **more}
        by = self.token_of(caller, device) if by_token else None
        if isinstance(to, dict):
            wanted = [one for one in self.groups.get(to["group"], []) if one != caller]
            body["to"] = {"group": self.town.real(to["group"])}
        else:
            wanted = to
            body["to"] = [self.town.real(one) for one in wanted]
        if caller is not None and by is None:
            body["from"] = self.town.real(caller)
        missed = {one: why for one in wanted if (why := self.why_not(one))}
        reached = [one for one in wanted if one not in missed]
        answer = self.town.ask("POST", "/v1/calls", by=by, key=key, json=body)
        self.count(f"call {answer.status_code}")
        if caller in wanted:
            assert answer.status_code == 422 or (not reached and answer.status_code == 404)
        elif not reached:
            assert answer.status_code == 404, answer.text
        elif len(reached) > (
            MAX_INVITEES if body["mode"] == Mode.COMMON else MAX_USERS - (caller is not None)
        ):
            assert answer.status_code == 422, answer.text
        else:
            assert answer.status_code == 201, answer.text
            model = Model(
                reached,
                caller=caller,
                device=None if by is None else device,
                mode=Mode(body["mode"]),
                now=self.relay.now,
                timeout_s=body["timeout"],
                check_s=NOT_RECEIVED_AFTER_S if body["check_not_received"] else None,
            )
            sid = answer.json()["call_sid"]
            call = PlayedCall(sid, model, caller, by, body, key, self.relay.now)
            assert shown_call(answer.json(), self.town) == call.expected()
            assert unreachable_in(answer.json(), self.town) == missed
            self.calls.append(call)

    # Operations.

    def plays(
        self,
        call: PlayedCall,
        operation: str,
        who: str | None,
        device: str | None,
        on_model: Callable[[Model], Verdict | Expected],
        *,
        by_token: bool = False,
        asked: str | None = None,
        **body: Any,  # noqa: ANN401 - JSON
    ) -> None:
        """Does an operation, and can do it again. `asked` is what a refusal calls it, where that is not its
        own name."""
        by = self.token_of(who, device) if by_token else None
        if who is not None and by is None:
            body["identity"] = self.town.real(who)
            if device is not None:
                body["device_id"] = self.town.device(who, device)

        def once() -> None:
            call.operations += 1
            expected = on_model(call.model)
            path = f"/v1/calls/{call.sid}/{operation}"
            answer = self.town.ask("POST", path, by=by, json=body)
            came = expected.value if isinstance(expected, Verdict) else "moved"
            self.count(f"{operation} {call.model.mode} {came}")
            self._must_be_answered(call, asked or operation, who, expected, answer)
            if "to" in body and operation == "cancel" and answer.status_code == 200:
                told = unreachable_in(answer.json(), self.town)
                assert told == call.model.last_errors

        self.again = once
        once()

    def _must_be_answered(
        self,
        call: PlayedCall,
        operation: str,
        who: str | None,
        expected: Verdict | Expected,
        answer: httpx.Response,
    ) -> None:
        status = answer.status_code
        if isinstance(expected, Verdict) and expected in _STATUS:
            assert status == _STATUS[expected], (expected, answer.text)
        elif expected is Verdict.REFUSED_OR_NOTHING:
            assert status in (200, 409), answer.text
        else:
            assert status == 200, (expected, answer.text)
        if status == 200:
            assert shown_call(answer.json(), self.town) == call.expected()
        if status == 409:
            problem = answer.json()
            assert problem["type"] == "/problems/operation-refused"
            assert problem["operation"] == operation.removesuffix("s")
            states = {call.model.call_state} | ({call.model.of.get(who)} if who else set())
            assert problem["state"] in states, (problem, states)
            assert problem["code"] == _CODES[problem["reason"]], problem
            if problem["reason"] == "cancelled":
                assert call.model.withdrawn or call.model.of.get(who or "") == "Canceled"
            if problem["reason"] == "not-main-device":
                assert who is not None
                assert call.model.main[who] is not None
            assert problem["causes"]
            assert problem["solutions"]

    # Time.

    def moves_clock(self, by: timedelta) -> None:
        """Lets time pass, and what it brings happen."""
        if by > _TOKENS_FORGOTTEN_AFTER:
            self.town.forget_tokens()
        self.relay.advance(by)
        for call in self.calls:
            came = call.model.time(self.relay.now)
            self.count(f"time {'moved' if isinstance(came, Expected) else came.value}")
        self._time_has_passed = True

    # What always holds.

    @invariant()
    def every_call_is_as_the_model_says(self) -> None:
        waits, self._time_has_passed = self._time_has_passed, False
        for call in self.calls:
            if waits:
                until(lambda call=call: self.shown(call) == call.expected())
            assert self.shown(call) == call.expected()

    def shown(self, call: PlayedCall) -> dict[str, Any]:
        answer = self.town.ask("GET", f"/v1/calls/{call.sid}")
        assert answer.status_code == 200, answer.text
        return shown_call(answer.json(), self.town)

"""People with devices who do anything to calls in any order, over HTTP, while time passes."""

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from bellwire.signaling.calls.calls import CallType, Mode
from tests.model.played_call import shown_call, unreachable_in
from tests.model.stage import DEAF, NOBODY, Part, Stage
from tests.signaling.call_model import GONE, Expected, Model, Verdict

ALICE = "alice"
PEOPLE = [ALICE, *(f"user{number}" for number in range(13))]
FEW = [ALICE, ALICE, *PEOPLE[1:4] * 2]
"""Few people do most, so that one of them comes through many states."""
CHANGING = PEOPLE[2:4]
"""Whose device comes and goes."""
ALIVE_AT_ONCE, CALLS = 3, 7

callers = st.sampled_from([*FEW, None])
devices = st.sampled_from(["phone", "tablet", "desk"])
some_device = devices | devices | st.none()
invitees = st.lists(
    st.sampled_from(FEW) | st.sampled_from([*PEOPLE, DEAF, NOBODY]),
    min_size=1,
    max_size=10,
    unique=True,
)
callees = st.lists(st.sampled_from(PEOPLE[1:]), min_size=1, max_size=12, unique=True) | invitees
which = st.integers(0, 11)
has_calls = precondition(lambda self: self.calls)


def mostly(*parts: str) -> st.SearchStrategy[Part]:
    """Somebody who as a rule has one of these parts in the call."""
    return st.tuples(st.sampled_from([*parts * 4, "user", "anybody"]), st.integers(0, 11))


class RandomTown(Stage):
    """What people, servers and time do."""

    @initialize(
        caller=st.sampled_from([ALICE, ALICE, ALICE, None]),
        device=some_device,
        invitees=st.sampled_from([1, 2, 3, 9, 12]),
        mode=st.sampled_from([Mode.COMMON, Mode.ADVANCED, Mode.ADVANCED]),
        check=st.booleans(),
    )
    def first_call(
        self, caller: str | None, device: str | None, invitees: int, mode: Mode, check: bool
    ) -> None:
        more = {"mode": mode, "check_not_received": check, "timeout": 60}
        to = PEOPLE[1 : 1 + (invitees if mode is Mode.COMMON else min(invitees, 9))]
        self.makes(caller, device, to, more, by_token=True, key=None)

    @precondition(lambda self: len(self.living) < ALIVE_AT_ONCE and len(self.calls) < CALLS)
    @rule(
        caller=callers,
        device=some_device,
        to=callees | st.sampled_from([{"group": name} for name in ("day", "night", "none")]),
        more=st.fixed_dictionaries(
            {
                "mode": st.sampled_from(Mode),
                "call_type": st.sampled_from(CallType),
                "timeout": st.sampled_from([1, 2.5, 60, 600]),
                "check_not_received": st.booleans(),
                "custom_parameters": st.dictionaries(st.sampled_from("ab"), st.text(max_size=3)),
            }
        ),
        by_token=st.booleans(),
        keyed=st.booleans(),
    )
    def somebody_calls(
        self,
        caller: str | None,
        device: str | None,
        to: list[str] | dict[str, str],
        more: dict[str, Any],
        by_token: bool,
        keyed: bool,
    ) -> None:
        key = f"key-{len(self.calls)}" if keyed else None
        self.makes(caller, device, to, more, by_token=by_token, key=key)

    @precondition(lambda self: any(call.key for call in self.calls))
    @rule(which=which, otherwise=st.booleans())
    def call_is_made_again_under_its_key(self, which: int, otherwise: bool) -> None:
        keyed = [call for call in self.calls if call.key]
        call = keyed[which % len(keyed)]
        body = call.body | ({"timeout": 599} if otherwise else {})
        answer = self.town.ask("POST", "/v1/calls", by=call.by, key=call.key, json=body)
        self.count(f"call again {answer.status_code}")
        if otherwise:
            assert answer.status_code == 409, answer.text
            assert answer.json()["type"] == "/problems/conflict"
            return
        assert answer.status_code == 201, answer.text
        assert answer.headers["Idempotent-Replayed"] == "true"
        assert shown_call(answer.json(), self.town) == call.expected()

    # Operations.

    @has_calls
    @rule(which=which, part=mostly("invited"), device=some_device, by_token=st.booleans())
    def confirms(self, which: int, part: Part, device: str | None, by_token: bool) -> None:
        call = self.call_of(which)
        who = self.somebody(call, part, PEOPLE)
        on_model = lambda model: model.confirm(who, self.relay.now)  # noqa: E731
        self.plays(call, "received", who, device, on_model, by_token=by_token)

    @has_calls
    @rule(
        which=which,
        part=mostly("invited"),
        device=some_device,
        status=st.sampled_from(["accepted", "accepted", "rejected", "busy"]),
        by_token=st.booleans(),
    )
    def answers(
        self, which: int, part: Part, device: str | None, status: str, by_token: bool
    ) -> None:
        call = self.call_of(which)
        who = self.somebody(call, part, PEOPLE)
        accepts = status == "accepted"

        def on_model(model: Model) -> Verdict | Expected:
            return model.answer(who, device, self.relay.now, accepts=accepts)

        operation = "accept" if accepts else "reject"
        more = {} if accepts else {"status": status}
        self.plays(call, operation, who, device, on_model, by_token=by_token, **more)

    @has_calls
    @rule(which=which, part=mostly("invited"), device=devices)
    def ignores(self, which: int, part: Part, device: str) -> None:
        call = self.call_of(which)
        who = self.somebody(call, part, PEOPLE)
        self.plays(call, "ignore", who, device, lambda model: model.ignore(who, self.relay.now))

    @precondition(lambda self: any(call.operations > 4 for call in self.calls))
    @rule(
        which=which,
        part=mostly("caller", "inside") | st.none(),
        to=st.none() | st.lists(mostly("invited", "user"), min_size=1, max_size=4),
        by_token=st.booleans(),
        as_rejection=st.booleans(),
    )
    def cancels(
        self,
        which: int,
        part: Part | None,
        to: list[Part] | None,
        by_token: bool,
        as_rejection: bool,
    ) -> None:
        """All or some; the caller's rejection with the status `cancelled` is a cancel of all."""
        call = self.call_of(which)
        who = None if part is None else self.somebody(call, part, PEOPLE)
        meant = None if to is None else sorted({self.somebody(call, one, PEOPLE) for one in to})
        on_model = lambda model: model.cancel(who, self.relay.now, meant)  # noqa: E731
        if meant is not None:
            names = [self.town.real(one) for one in meant]
            self.plays(call, "cancel", who, None, on_model, by_token=by_token, to=names)
        elif as_rejection and who is not None:
            said = {"status": "cancelled"}
            self.plays(
                call, "reject", who, None, on_model, by_token=by_token, asked="cancel", **said
            )
        else:
            self.plays(call, "cancel", who, None, on_model, by_token=by_token)

    @has_calls
    @rule(
        which=which,
        part=mostly("inside") | st.none(),
        invitees=invitees,
        again=st.none() | mostly("gone"),
        timeout_s=st.sampled_from([1, 20, 600]),
        by_token=st.booleans(),
    )
    def invites_more(
        self,
        which: int,
        part: Part | None,
        invitees: list[str],
        again: Part | None,
        timeout_s: int,
        by_token: bool,
    ) -> None:
        call = self.call_of(which)
        who = None if part is None else self.somebody(call, part, PEOPLE)
        invitees = invitees if again is None else [self.somebody(call, again, PEOPLE)]
        body = {"to": [self.town.real(one) for one in invitees], "timeout": timeout_s}
        missed = {
            one: why
            for one in invitees
            if (why := self.why_not(one)) and call.model.of.get(one, "Quit") in GONE
        }
        reached = [one for one in invitees if one not in missed]
        if reached:
            server = self.is_server(who, "phone", by_token=by_token)

            def on_model(model: Model) -> Verdict | Expected:
                return model.invite(who, reached, timeout_s, self.relay.now, "phone", server=server)

            self.plays(
                call,
                "invite",
                who,
                "phone",
                on_model,
                by_token=by_token,
                **body,
            )
            self.again = None  # by then somebody may have got or lost a device
            return
        identity = {} if who is None else {"identity": self.town.real(who)}
        answer = self.town.ask("POST", f"/v1/calls/{call.sid}/invite", json=body | identity)
        self.count(f"invite nobody {answer.status_code}")
        assert answer.status_code in (403, 404, 409), answer.text
        if answer.status_code == 404:
            assert unreachable_in(answer.json(), self.town) == missed

    @has_calls
    @rule(
        which=which,
        part=mostly("inside", "gone", "outside"),
        device=some_device,
        by_token=st.booleans(),
    )
    def joins(self, which: int, part: Part, device: str | None, by_token: bool) -> None:
        call = self.call_of(which)
        who = self.somebody(call, part, PEOPLE)

        def on_model(model: Model) -> Verdict | Expected:
            if device is None and model.of.get(who) == "Accepted" and not model.ended:
                return Verdict.NOTHING  # no device is named that could take the call over
            return model.join(who, device, self.relay.now)

        self.plays(call, "join", who, device, on_model, by_token=by_token)

    @has_calls
    @rule(which=which, part=mostly("inside"), device=some_device, by_token=st.booleans())
    def quits(self, which: int, part: Part, device: str | None, by_token: bool) -> None:
        call = self.call_of(which)
        who = self.somebody(call, part, PEOPLE)
        server = self.is_server(who, device, by_token=by_token)
        on_model = lambda model: model.quit(who, device, self.relay.now, server=server)  # noqa: E731
        self.plays(call, "quit", who, device, on_model, by_token=by_token)

    @precondition(lambda self: any(call.operations > 8 for call in self.calls))
    @rule(
        which=which,
        part=mostly("inside") | st.none(),
        device=some_device,
        by_token=st.booleans(),
    )
    def ends(self, which: int, part: Part | None, device: str | None, by_token: bool) -> None:
        call = self.call_of(which)
        who = None if part is None else self.somebody(call, part, PEOPLE)
        server = self.is_server(who, device, by_token=by_token)
        on_model = lambda model: model.end(who, device, self.relay.now, server=server)  # noqa: E731
        self.plays(call, "end", who, device if who else None, on_model, by_token=by_token)

    @has_calls
    @rule(
        which=which,
        part=mostly("inside", "invited") | st.none(),
        to=st.none() | mostly("inside", "invited"),
        device=some_device,
        by_token=st.booleans(),
    )
    def says(
        self, which: int, part: Part | None, to: Part | None, device: str | None, by_token: bool
    ) -> None:
        call = self.call_of(which)
        who = None if part is None else self.somebody(call, part, PEOPLE)
        meant = None if to is None else [self.somebody(call, to, PEOPLE)]

        server = self.is_server(who, device, by_token=by_token)

        def on_model(model: Model) -> Verdict | Expected:
            heard = model.hearers(who, meant, device, server=server)
            return heard if isinstance(heard, Verdict) else Verdict.NOTHING

        body: dict[str, Any] = {"content": "hello"}
        if meant is not None:
            body["to"] = [self.town.real(one) for one in meant]
        on = device if who is not None else None
        self.plays(call, "messages", who, on, on_model, by_token=by_token, **body)

    @precondition(lambda self: self.again is not None)
    @rule()
    def last_operation_is_repeated(self) -> None:
        assert self.again is not None
        self.again()

    # Questions.

    @has_calls
    @rule(which=which, part=mostly("user", "anybody"))
    def looks(self, which: int, part: Part) -> None:
        call = self.call_of(which)
        who = self.somebody(call, part, PEOPLE)
        answer = self.town.ask("GET", f"/v1/calls/{call.sid}", by=(who, None))
        self.count(f"look {answer.status_code}")
        assert answer.status_code == (200 if who in call.model.of else 403), answer.text

    @rule(
        who=st.sampled_from(PEOPLE[:4]),
        count=st.sampled_from([1, 2, 3, 100, 1000]),
        by_token=st.booleans(),
    )
    def lists(self, who: str, count: int, by_token: bool) -> None:
        self.count("list")
        hers = [call.expected() for call in reversed(self.calls) if who in call.model.of]
        found: list[dict[str, Any]] = []
        cursor, by = None, (who, None) if by_token else None
        while cursor != 0:
            asked = {"identity": self.town.real(who), "count": count, "next": cursor or 0}
            answer = self.town.ask("GET", "/v1/calls", by=by, params=asked)
            assert answer.status_code == 200, answer.text
            page = [shown_call(document, self.town) for document in answer.json()["calls"]]
            cursor = answer.json()["next"]
            found += page
            assert len(page) == count if cursor else len(page) <= count
        assert found == hers

    @rule(
        operation=st.sampled_from(
            ["received", "accept", "reject", "ignore", "cancel", "join", "quit", "end"]
        ),
        by_token=st.booleans(),
    )
    def asks_for_no_call(self, operation: str, by_token: bool) -> None:
        body = {} if by_token else {"identity": self.town.real(ALICE)}
        by = (ALICE, None) if by_token else None
        answer = self.town.ask("POST", f"/v1/calls/CA{0:032x}/{operation}", by=by, json=body)
        self.count("no call")
        assert answer.status_code == 404, answer.text
        assert answer.json()["code"] == 31481

    # What people have, and where they are.

    @rule(who=st.sampled_from(CHANGING), why_not=st.sampled_from([None, "no_device", "unknown"]))
    def somebody_changes_its_device(self, who: str, why_not: str | None) -> None:
        self.count("device")
        self.has_device(who, why_not)

    @rule(name=st.sampled_from(["day", "night"]), members=callees | callees | st.none())
    def group_changes(self, name: str, members: list[str] | None) -> None:
        self.count("group")
        path, known = f"/v1/groups/{self.town.real(name)}", name in self.groups
        if members is None:
            answer = self.town.ask("DELETE", path)
            assert answer.status_code == (204 if known else 404)
            self.groups.pop(name, None)
            return
        answer = self.town.ask("PUT", path, json={"members": [self.town.real(m) for m in members]})
        assert answer.status_code == (200 if known else 201)
        self.groups[name] = members

    @rule(who=st.sampled_from([ALICE, PEOPLE[1]]), device=st.sampled_from(["tablet", "desk"]))
    def device_comes_or_is_lost(self, who: str, device: str) -> None:
        self.why_not(who)
        if (who, device) not in self.town.online:
            self.count("comes")
            self.town.connect(who, device)
            return
        self.town.lose(who, device)
        last = all(other != who for other, _ in self.town.online)
        for call in self.calls:
            if who in call.model.of:
                came = call.model.goes_offline(who, device, self.relay.now, last=last)
                call.withdrawn |= isinstance(came, Expected)
                self.count(f"offline {'moved' if isinstance(came, Expected) else came.value}")

    # Time.

    @rule(seconds=st.sampled_from([0.001, 1, 1, 2, 3, 3, 20, 60, 600, 3600]))
    def time_passes(self, seconds: float) -> None:
        self.moves_clock(timedelta(seconds=seconds))

    @precondition(lambda self: any(call.model.deadline for call in self.calls))
    @rule(which=which, early=st.booleans())
    def next_deadline_comes(self, which: int, early: bool) -> None:
        """Exactly in time, or the smallest moment before."""
        due = sorted(call.model.deadline for call in self.calls if call.model.deadline)
        left = due[0 if which % 3 else which % len(due)] - self.relay.now
        if early:
            left -= timedelta(milliseconds=1)
        if left > timedelta(0):
            self.moves_clock(left)

"""Who may ring whom (`[policy]` of the settings): asked of each call, invitation and join that an app
or a device makes by its own token or connection. A server is the authority of its backend and is not
asked. Members of groups are read in the transaction that makes the call, and only where rules name
groups: what a group is told to be holds from the next call on, at each relay."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bellwire.config.call_policy import ANYBODY, GROUP, PolicySettings
from bellwire.push.store.rows.groups import members_of_all
from bellwire.signaling.calls.calls import Attestation, Call, CallState, Mode
from bellwire.signaling.calls.commands import Join
from bellwire.signaling.errors import Forbidden
from bellwire.signaling.identifiers import Identity

_REFUSED_AS = "policy"

Members = Mapping[str, frozenset[Identity]]


@dataclass(frozen=True, slots=True)
class _Parties:
    """One side of a rule."""

    anybody: bool
    identities: frozenset[str]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, written: Iterable[str]) -> "_Parties":
        named = set(written)
        groups = {party for party in named if party.startswith(GROUP)}
        return cls(
            ANYBODY in named,
            frozenset(named - groups - {ANYBODY}),
            tuple(sorted(party.removeprefix(GROUP) for party in groups)),
        )

    def include(self, identity: Identity, members: Members) -> bool:
        return (
            self.anybody
            or identity in self.identities
            or any(identity in members[group] for group in self.groups)
        )


@dataclass(frozen=True, slots=True)
class _Rule:
    callers: _Parties
    called: _Parties
    allow: bool


class CallPolicy:
    """Says whom a caller may not ring.

    Args:
        settings: The rules.
        on_refused: Called with the reason when somebody is kept from ringing somebody.
    """

    def __init__(
        self, settings: PolicySettings, on_refused: Callable[[str], None] = lambda _: None
    ) -> None:
        self._rules = tuple(
            _Rule(_Parties.of(rule.from_), _Parties.of(rule.to), rule.allow)
            for rule in settings.rules
        )
        self._allows_others = settings.default == "allow"
        self._allows_all = settings.lets_all_ring_all
        self._groups = sorted(
            {group for r in self._rules for side in (r.callers, r.called) for group in side.groups}
        )
        self._on_refused = on_refused

    def denied(
        self, connection: Connection, caller: Identity, wanted: Sequence[Identity]
    ) -> frozenset[Identity]:
        """Those of `wanted` whom the caller may not ring."""
        if self._allows_all:
            return frozenset()
        members = members_of_all(connection, self._groups)
        denied = frozenset(one for one in wanted if not self._lets_ring(caller, one, members))
        if denied:
            self._on_refused(_REFUSED_AS)
        return denied

    def check_join(self, connection: Connection, call: Call, command: Join) -> None:
        """Lets who has no place in an advanced call into it only where it may ring all who are in it or
        invited, since it comes to hear and to be heard by them; and where nobody is, all who were.

        Raises:
            Forbidden: it may not.
        """
        if (
            command.attestation is not Attestation.FULL
            or call.mode is not Mode.ADVANCED
            or call.state is CallState.ENDED
            or call.user(command.identity) is not None
        ):
            return
        there = (*call.pending, *call.accepted) or call.users
        denied = self.denied(connection, command.identity, [user.identity for user in there])
        if denied:
            raise not_let_ring(command.identity, sorted(denied))

    def _lets_ring(self, caller: Identity, called: Identity, members: Members) -> bool:
        for rule in self._rules:
            if rule.callers.include(caller, members) and rule.called.include(called, members):
                return rule.allow
        return self._allows_others


def not_let_ring(caller: Identity | None, denied: Sequence[Identity]) -> Forbidden:
    """The refusal of a call of which nothing is left."""
    return Forbidden(
        f"the relay's call policy does not let {caller} ring {', '.join(denied)}: ask its operator for"
        " a rule in `[policy]` of its settings",
        error_invitees=[{"identity": identity, "reason": "forbidden"} for identity in denied],
    )

"""Who of those somebody wants to call can be called, and on which devices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bellwire.push.calls.policy import not_let_ring
from bellwire.push.store.engine.unit_of_work import UnitOfWork
from bellwire.push.store.rows.devices import DeviceRow
from bellwire.push.store.rows.groups import members_of
from bellwire.signaling.calls.calls import Unreachable
from bellwire.signaling.calls.commands import Invitee
from bellwire.signaling.errors import NobodyToCall, NotFound
from bellwire.signaling.identifiers import Identity

Denied = Callable[[Sequence[Identity]], frozenset[Identity]]
"""Which of some identities whoever calls may not ring."""


def nobody(_: Sequence[Identity]) -> frozenset[Identity]:
    """Denies nobody."""
    return frozenset()


@dataclass(frozen=True, slots=True)
class Reach:
    """Who can be called, who cannot and why, and the devices of all concerned."""

    invitees: tuple[Invitee, ...]
    unreachable: tuple[tuple[Identity, Unreachable], ...]
    devices: tuple[DeviceRow, ...]

    def must_reach_somebody(self, caller: Identity | None) -> None:
        """Refuses to go on where nobody can be called by whoever asks.

        Raises:
            Forbidden: none of them may be.
            NobodyToCall: nobody can.
        """
        denied = [identity for identity, reason in self.unreachable if reason == "forbidden"]
        if not self.invitees and denied and len(denied) == len(self.unreachable):
            raise not_let_ring(caller, denied)
        if not self.invitees:
            raise NobodyToCall(
                "none of the invitees has a device: register one with `PUT /v1/devices/{id}`",
                error_invitees=[
                    {"identity": i, "reason": reason} for i, reason in self.unreachable
                ],
            )


def find_reach(
    unit: UnitOfWork,
    to: tuple[Identity, ...] | str,
    caller: Identity | None,
    parameters: Mapping[Identity, Mapping[str, str]],
    denied: Denied = nobody,
) -> Reach:
    """Looks up identities, or the members of a group but the caller. Of those who are denied nothing
    else is said, such as whether there is anybody of that name.

    Raises:
        NotFound: there is no such group.
    """
    identities = _members(unit.connection, to, caller) if isinstance(to, str) else to
    forbidden = denied(identities)
    wanted = [identity for identity in identities if identity not in forbidden]
    devices = unit.devices_of([*wanted, *([caller] if caller is not None else [])])
    channels: dict[Identity, set[str]] = {}
    for device in devices:
        kinds = channels.setdefault(device.identity, set())
        kinds.update(channel.kind for channel in device.channels)
    return Reach(
        invitees=tuple(
            Invitee(identity, tuple(sorted(channels[identity])), parameters.get(identity))
            for identity in wanted
            if channels.get(identity)
        ),
        unreachable=tuple(
            (identity, _why_not(identity, forbidden, channels))
            for identity in identities
            if identity in forbidden or not channels.get(identity)
        ),
        devices=tuple(devices),
    )


def _why_not(
    identity: Identity, forbidden: frozenset[Identity], channels: Mapping[Identity, set[str]]
) -> Unreachable:
    if identity in forbidden:
        return "forbidden"
    return "no_device" if identity in channels else "unknown"


def _members(connection: Connection, name: str, caller: Identity | None) -> tuple[Identity, ...]:
    members = members_of(connection, name)
    if members is None:
        raise NotFound(f"there is no group {name}: make it with `PUT /v1/groups/{name}`")
    return tuple(member for member in members if member != caller)

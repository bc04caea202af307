"""What one transaction reads and changes of calls: read ahead, decided in memory, and written in a few
statements once all is decided. The commands that wait for one another's commit share a unit, so that
a statement, and a way to the database and back, serves them all.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from sqlalchemy import Connection

from bellwire.push.store.prepared import pipelined
from bellwire.push.store.rows.calls import (
    IdempotencyRow,
    find_idempotent,
    hold_calls,
    insert_calls,
    insert_users,
    keep_idempotent,
    load_call,
    save_calls,
)
from bellwire.push.store.rows.deliveries import Confirmed, put_received
from bellwire.push.store.rows.devices import DeviceRow, devices_of
from bellwire.push.store.rows.events import StreamEvent, Unread, append_events, forget_stream_events
from bellwire.push.store.rows.outbox import Delivery, Forgotten, forget_events, owe, settle
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.errors import Refusal
from bellwire.signaling.identifiers import CallSid, Identity

OnForgotten = Callable[["UnitOfWork", list[Forgotten], list[Unread]], None]
"""Told of deliveries and of events in streams that were taken back, in the transaction that does."""

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[Connection], T]
"""What is done in one transaction."""


@dataclass(slots=True, eq=False)
class Kept:
    """Whether something was kept that is kept only once; known when the unit has been written."""

    is_new: bool = False


class UnitOfWork:
    """Calls and the devices of their users, as one transaction sees them (Fowler's unit of work).

    What is put here is seen by whoever looks here afterwards, and is written by `write`.

    Args:
        connection: The transaction.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._calls: dict[CallSid, Call | None] = {}
        self._devices: dict[Identity, list[DeviceRow]] = {}
        self._new: dict[CallSid, Call] = {}
        self._changed: dict[CallSid, Call] = {}
        self._users: list[tuple[CallSid, Identity]] = []
        self._keys: dict[tuple[str, str], IdempotencyRow] = {}
        self._owed: list[Delivery] = []
        self._leased_until_ms = 0
        self._events: list[StreamEvent] = []
        self._over: dict[str, OnForgotten] = {}
        self._forgotten: Callable[[], list[Forgotten]] = list
        self._unread: Callable[[], list[Unread]] = list
        self._confirmed: list[tuple[Confirmed, Kept]] = []
        self.undone_by: list[Callable[[], None]] = []

    def if_not_kept(self, undo: Callable[[], None]) -> None:
        """Has `undo` called should what the command does now not be committed: what it took of
        something that is not in the database is to be given back."""
        self.undone_by.append(undo)

    def read_ahead(self, calls: Collection[CallSid], identities: Iterable[Identity]) -> None:
        """Reads calls, held against other writers until the transaction ends, and the devices of
        their users and of some more identities."""
        missing = sorted({sid for sid in calls if sid not in self._calls})
        if missing:
            # In one order everywhere, so that two transactions never wait for each other.
            self._calls |= dict.fromkeys(missing) | hold_calls(self.connection, missing)
        concerned = {
            user.identity
            for call in map(self._calls.get, missing)
            if call is not None
            for user in call.users
        }
        self._read_devices(concerned.union(identities))

    def call(self, call_sid: CallSid) -> Call | None:
        """The call with this SID, held against other writers, or None."""
        if call_sid not in self._calls:
            self.read_ahead([call_sid], ())
        return self._calls[call_sid]

    def call_as_it_is(self, call_sid: CallSid) -> Call | None:
        """The call with this SID, which others may be changing, or None."""
        if call_sid in self._calls:
            return self._calls[call_sid]
        return load_call(self.connection, call_sid)

    def devices_of(self, identities: Collection[Identity]) -> list[DeviceRow]:
        """All devices of some identities, by id."""
        self._read_devices(identities)
        found = [device for identity in set(identities) for device in self._devices[identity]]
        found.sort(key=lambda device: device.device_id)
        return found

    def add_call(self, call: Call) -> None:
        """Keeps a new call."""
        self._calls[call.call_sid] = self._new[call.call_sid] = call
        self._users += [(call.call_sid, user.identity) for user in call.users]

    def save_call(self, call: Call, joined: Iterable[Identity] = ()) -> None:
        """Keeps a call that has changed; `joined` are the identities that it did not have before."""
        changed = self._new if call.call_sid in self._new else self._changed
        self._calls[call.call_sid] = changed[call.call_sid] = call
        self._users += [(call.call_sid, identity) for identity in joined]

    def find_idempotent(self, actor: str, key: str) -> tuple[str, str] | None:
        """The fingerprint and call SID that were kept under an actor's key, or None."""
        kept = self._keys.get((actor, key))
        if kept is not None:
            return kept.fingerprint, kept.call_sid
        found = find_idempotent(self.connection, actor, key)
        return None if found is None else (found[0], found[1])

    def keep_idempotent(self, row: IdempotencyRow) -> None:
        """Keeps what a request under an actor's key made."""
        self._keys[row.actor, row.key] = row

    def owe(self, deliveries: Sequence[Delivery], leased_until_ms: int) -> None:
        """Keeps new deliveries, leased to this process."""
        self._owed += deliveries
        self._leased_until_ms = max(self._leased_until_ms, leased_until_ms)

    def append(self, events: Iterable[StreamEvent]) -> None:
        """Appends events to their devices' streams."""
        self._events += events

    def forget_events(self, event_ids: Iterable[str], told: OnForgotten) -> None:
        """Takes back events that no longer matter, where they have not yet reached their devices; `told`
        is given those."""
        self._over |= dict.fromkeys(event_ids, told)

    def confirm(self, confirmed: Confirmed) -> Kept:
        """Keeps that a device has its invite, where that is not known yet."""
        kept = Kept()
        self._confirmed.append((confirmed, kept))
        return kept

    def write(self) -> None:
        """Writes all of it."""
        connection = self.connection
        insert_calls(connection, [*self._new.values()])
        insert_users(connection, self._users)
        save_calls(connection, [*self._changed.values()])
        keep_idempotent(connection, [*self._keys.values()])
        if self._over:
            # Before anything is appended: rows of streams are locked before their devices' everywhere.
            self._forgotten = forget_events(connection, [*self._over])
            self._unread = forget_stream_events(connection, [*self._over])
        over = self._over.keys()
        owe(
            connection,
            [d for d in self._owed if d.event_id not in over or not d.device_id],
            self._leased_until_ms,
        )
        for confirmed, kept in sorted(self._confirmed, key=lambda pair: astuple(pair[0])):
            kept.is_new = put_received(connection, confirmed)
        append_events(connection, [e for e in self._events if e.event_id not in over])

    def tell_forgotten(self) -> None:
        """Tells what was taken back, in the same transaction. After `write`, and after a pipeline: what is
        asked for here is known there."""
        forgotten: dict[OnForgotten, tuple[list[Forgotten], list[Unread]]] = {}
        for row in self._forgotten():
            forgotten.setdefault(self._over[row.event_id], ([], []))[0].append(row)
        for unread in self._unread():
            forgotten.setdefault(self._over[unread.event_id], ([], []))[1].append(unread)
        for told, (deliveries, events) in forgotten.items():
            told(self, deliveries, events)

    def take_back(self, is_meant: Callable[[Delivery], bool]) -> None:
        """Takes back deliveries that this unit owes."""
        meant = [delivery for delivery in self._owed if is_meant(delivery)]
        settle(self.connection, [delivery.delivery_id for delivery in meant])
        for delivery in meant:
            delivery.taken_back = True

    def _read_devices(self, identities: Iterable[Identity]) -> None:
        missing = [identity for identity in identities if identity not in self._devices]
        if not missing:
            return
        self._devices |= {identity: [] for identity in missing}
        for device in devices_of(self.connection, missing):
            self._devices[device.identity].append(device)


def in_a_unit(
    work: Callable[Concatenate[UnitOfWork, P], T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[Connection], T]:
    """Work in a unit of its own: it may read and write rows beside, which a unit that is shared does
    not see."""

    def run(connection: Connection) -> T:
        unit = UnitOfWork(connection)
        result = work(unit, *args, **kwargs)
        unit.write()
        unit.tell_forgotten()
        return result

    return run


@dataclass(slots=True, eq=False)
class CallWork(Generic[T]):
    """A command on calls. `do` decides; where it refuses, it has put nothing into the unit and written
    nothing. `calls` and `identities` (whose devices) are what it is known to need beside the devices of
    the calls' users, and are read, the calls held, before it begins."""

    do: Callable[[UnitOfWork], T]
    calls: tuple[CallSid, ...] = ()
    identities: tuple[Identity, ...] = ()
    undone_by: list[Callable[[], None]] = field(default_factory=list)

    def undo(self) -> None:
        """Gives back what it took outside the database: nothing of it was kept."""
        while self.undone_by:
            self.undone_by.pop()()


def carry_out_together(connection: Connection, works: Sequence[CallWork[Any]]) -> list[Any]:
    """Carries out commands in one unit; returns for each what it gave, or the Refusal that is to be
    raised to who asked. With any other error nothing may be kept of any of them."""
    results: list[Any] = []
    for work in works:
        work.undo()  # of a transaction that collided and is tried again
    with pipelined(connection):
        unit = UnitOfWork(connection)
        unit.read_ahead(
            {call_sid for work in works for call_sid in work.calls},
            {identity for work in works for identity in work.identities},
        )
        for work in works:
            unit.undone_by = work.undone_by
            try:
                results.append(work.do(unit))
            except Refusal as refusal:
                work.undo()
                results.append(refusal)
        unit.write()
    unit.tell_forgotten()
    return results

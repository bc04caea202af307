"""Named groups of identities as rows."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select

from bellwire.push.store.prepared import Prepared, PreparedForList
from bellwire.push.store.tables import group_members, groups
from bellwire.signaling.identifiers import Identity

_KNOWN = Prepared(select(groups.c.name).where(groups.c.name == bindparam("group")))
_MEMBERS = Prepared(
    select(group_members.c.identity)
    .where(group_members.c.name == bindparam("group"))
    .order_by(group_members.c.position)
)
_MEMBERS_OF_ALL = PreparedForList(
    lambda names: select(group_members.c.name, group_members.c.identity).where(
        group_members.c.name.in_(names)
    )
)


def members_of(connection: Connection, name: str) -> tuple[Identity, ...] | None:
    """The members of a group in their order, None where there is no such group."""
    if _KNOWN.one(connection, group=name) is None:
        return None
    return tuple(Identity(identity) for (identity,) in _MEMBERS.rows(connection, group=name))


def members_of_all(
    connection: Connection, names: Sequence[str]
) -> Mapping[str, frozenset[Identity]]:
    """The members of some groups, by name; of one that is not there, nobody."""
    found: dict[str, set[Identity]] = {name: set() for name in names}
    for name, identity in _MEMBERS_OF_ALL.rows(connection, names):
        found[name].add(Identity(identity))
    return {name: frozenset(members) for name, members in found.items()}


def all_groups(connection: Connection) -> dict[str, tuple[Identity, ...]]:
    """All groups by name, with their members."""
    found: dict[str, tuple[Identity, ...]] = {}
    rows = connection.execute(
        select(groups.c.name, group_members.c.identity)
        .select_from(groups.join(group_members))
        .order_by(groups.c.name, group_members.c.position)
    )
    for row in rows:
        found[row.name] = (*found.get(row.name, ()), Identity(row.identity))
    return found


def put_group(connection: Connection, name: str, members: Sequence[Identity]) -> bool:
    """Gives a group its members in place of those it had; whether the group is new."""
    is_new = not delete_group(connection, name)
    connection.execute(insert(groups), {"name": name})
    connection.execute(
        insert(group_members),
        [
            {"name": name, "identity": member, "position": position}
            for position, member in enumerate(members)
        ],
    )
    return is_new


def delete_group(connection: Connection, name: str) -> bool:
    """Removes a group; False where there was none."""
    return connection.execute(delete(groups).where(groups.c.name == name)).rowcount > 0

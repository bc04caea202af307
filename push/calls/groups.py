"""Named groups of identities, which a call may be for."""

from sqlalchemy import Connection

from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.groups import all_groups, delete_group, members_of, put_group
from bellwire.signaling.errors import NotFound
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.wire.answers import GroupAnswer
from bellwire.signaling.wire.requests import GroupRequest


class Groups:
    """The groups of a relay."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, name: str, request: GroupRequest) -> tuple[GroupAnswer, bool]:
        """Gives a group its members, and whether it is new."""
        members = tuple(Identity(member) for member in request.members)
        is_new = await self._database.write(lambda c: put_group(c, name, members))
        return GroupAnswer(name=name, members=members), is_new

    async def get(self, name: str) -> GroupAnswer:
        """A group.

        Raises:
            NotFound: there is none of this name.
        """
        members = await self._database.read(lambda c: members_of(c, name))
        if members is None:
            raise NotFound(f"there is no group {name}")
        return GroupAnswer(name=name, members=members)

    async def all(self) -> list[GroupAnswer]:
        """All groups, by name."""
        found = await self._database.read(all_groups)
        return [GroupAnswer(name=name, members=members) for name, members in found.items()]

    async def delete(self, name: str) -> None:
        """Removes a group.

        Raises:
            NotFound: there is none of this name.
        """

        def work(connection: Connection) -> bool:
            return delete_group(connection, name)

        if not await self._database.write(work):
            raise NotFound(f"there is no group {name}")

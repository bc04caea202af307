"""Makes the broker credentials and rights of devices and operators, and takes them away. This and
`broker.accounts.dynamic_security` alone depend on which broker it is.
"""

import asyncio
import json
import secrets

from bellwire.broker.accounts.dynamic_security import (
    CONTROL_RESPONSE_TOPIC,
    CONTROL_TOPIC,
    OPERATOR_ROLE,
    Json,
    device_acls,
    device_role_name,
    doctor_client_id,
    doctor_username,
    operator_acls,
)
from bellwire.broker.session.messages import Incoming
from bellwire.broker.session.session import NotConnected, Session
from bellwire.signaling.errors import InvalidInput, Unavailable
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from bellwire.signaling.topics import retained_of

_TIMEOUT_S = 10.0
_ALREADY_GONE = ("Client not found", "Role not found")
_ALREADY_THERE = ("Role already exists",)
_ALREADY_GIVEN = ("ACL with this topic already exists",)


class DynamicSecurity:
    """The accounts of a mosquitto, through its dynamic-security plugin.

    Commands are answered on one topic for all relays, so they go one batch at a time, each marked.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Json] | None = None
        self._mark = ""
        session.subscribe(CONTROL_RESPONSE_TOPIC, self._take_answer)

    async def grant(self, device: DeviceId) -> str:
        """Lets the device reach its own topics, and returns its new password. One that has access already
        gets a new one.

        Raises:
            InvalidInput: the broker has an account of this name that is no device's.
            Unavailable: the broker did not take it.
        """
        password = secrets.token_urlsafe(32)
        await self.revoke(device)
        await self._run(
            {
                "command": "createRole",
                "rolename": device_role_name(device),
                "acls": device_acls(device),
            },
            # One client id, so that an account has one session, with one queue, however often it connects.
            {
                "command": "createClient",
                "username": device,
                "password": password,
                "clientid": mqtt_client_id(device, password),
                "roles": [{"rolename": device_role_name(device)}],
            },
            {
                "command": "createClient",
                "username": doctor_username(device),
                "password": password,
                "clientid": doctor_client_id(device),
                "roles": [{"rolename": device_role_name(device)}],
            },
        )
        return password

    async def revoke(self, device: DeviceId) -> None:
        """Takes the device's access away and disconnects it; nothing where it has none.

        Raises:
            InvalidInput: as `grant`.
            Unavailable: the broker did not take it.
        """
        await self._refuse_foreign(device)
        await self._run(*_removal(device), tolerate=_ALREADY_GONE)
        try:
            for topic in retained_of(device):
                await self._session.publish(topic, b"", retain=True)
        except NotConnected as error:
            raise Unavailable(f"the broker kept what the device said last: {error}") from error

    async def grant_operator(self, username: str) -> str:
        """Lets an operator of the fleet write its layers, and returns their new password. One that has
        access already is cut off and gets a new password.

        Raises:
            Unavailable: the broker did not take it.
        """
        password = secrets.token_urlsafe(32)
        role: Json = {"rolename": OPERATOR_ROLE, "acls": operator_acls()}
        await self.revoke_operator(username)
        await self._run({"command": "createRole", **role}, tolerate=_ALREADY_THERE)
        await self._run(
            {"command": "modifyRole", **role},  # as this version has it
            {
                "command": "createClient",
                "username": username,
                "password": password,
                "roles": [{"rolename": OPERATOR_ROLE}],
            },
        )
        return password

    async def extend_operators(self) -> int:
        """Gives the operators' role, where there is one, the rights that it lacks of this version's: an
        older version has made it. It takes none away: a newer one may have. How many it gave.

        Raises:
            Unavailable: the broker did not take it.
        """
        get = {"command": "getRole", "rolename": OPERATOR_ROLE}
        (answer,) = await self._run(get, tolerate=_ALREADY_GONE)
        role = answer.get("data", {}).get("role")
        if role is None:
            return 0
        has = {(acl.get("acltype"), acl.get("topic")) for acl in role.get("acls", [])}
        lacking = [acl for acl in operator_acls() if (acl["acltype"], acl["topic"]) not in has]
        if lacking:
            add = {"command": "addRoleACL", "rolename": OPERATOR_ROLE}
            await self._run(*({**add, **acl} for acl in lacking), tolerate=_ALREADY_GIVEN)
        return len(lacking)

    async def revoke_operator(self, username: str) -> bool:
        """Takes an operator's access away and disconnects them; whether they had any.

        Raises:
            Unavailable: the broker did not take it.
        """
        command = {"command": "deleteClient", "username": username}
        (answer,) = await self._run(command, tolerate=_ALREADY_GONE)
        return "error" not in answer

    async def has_operator(self, username: str) -> bool:
        """Whether an operator of this name has access.

        Raises:
            Unavailable: the broker does not answer.
        """
        get = {"command": "getClient", "username": username}
        (answer,) = await self._run(get, tolerate=_ALREADY_GONE)
        return "error" not in answer

    async def _refuse_foreign(self, device: DeviceId) -> None:
        """Keeps the relay's own account, and the operator's, from being taken for a device's."""
        get = {"command": "getClient", "username": device}
        (answer,) = await self._run(get, tolerate=_ALREADY_GONE)
        client = answer.get("data", {}).get("client")
        if client is None:
            return
        roles = {role.get("rolename") for role in client.get("roles", [])}
        if roles - {device_role_name(device)}:
            raise InvalidInput(
                f"the broker has an account {device} that is no device's: choose another device id"
            )

    async def _run(self, *commands: Json, tolerate: tuple[str, ...] = ()) -> list[Json]:
        async with self._turn:
            self._answer = asyncio.get_running_loop().create_future()
            self._mark = secrets.token_hex(8)
            marked = [{**command, "correlationData": self._mark} for command in commands]
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._session.publish(
                        CONTROL_TOPIC, json.dumps({"commands": marked}).encode()
                    )
                    answer = await self._answer
            except (NotConnected, TimeoutError) as error:
                raise Unavailable(
                    f"the broker did not take the device's credentials: {error}"
                ) from error
            finally:
                self._answer = None
        responses: list[Json] = answer.get("responses", [])
        for response in responses:
            problem = response.get("error")
            if problem is not None and problem not in tolerate:
                raise Unavailable(f"the broker refused {response.get('command')}: {problem}")
        return responses

    def _take_answer(self, message: Incoming) -> None:
        answer: Json = json.loads(message.payload)
        marks = {response.get("correlationData") for response in answer.get("responses", [])}
        if self._answer is not None and not self._answer.done() and marks == {self._mark}:
            self._answer.set_result(answer)


def _removal(device: DeviceId) -> tuple[Json, ...]:
    return (
        {"command": "deleteClient", "username": device},
        {"command": "deleteClient", "username": doctor_username(device)},
        {"command": "deleteRole", "rolename": device_role_name(device)},
    )

"""The vocabulary of mosquitto's dynamic-security plugin: roles, clients, hashed passwords.

Mosquitto 2.0.11 does not expand `%u` in a role's ACLs, so each device has a role of its own with
literal topics.
"""

import base64
import hashlib
import secrets
from typing import Any

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import (
    CONFIG_GROUPS,
    PRESENCE_SHARED,
    REQUESTS_SHARED,
    read_by_operators,
    readable_by,
    writable_by,
    written_by_operators,
)

Json = dict[str, Any]

CONTROL_TOPIC = "$CONTROL/dynamic-security/v1"
CONTROL_RESPONSE_TOPIC = f"{CONTROL_TOPIC}/response"
RELAY_ROLE = "bellwire-relay"
OPERATOR_ROLE = "bellwire-operator"
_ITERATIONS = 10_000


def allow(acl_type: str, topic: str) -> Json:
    """One permission."""
    return {"acltype": acl_type, "topic": topic, "priority": 0, "allow": True}


def device_role_name(device: DeviceId) -> str:
    """The name of the role that only this device has."""
    return f"device-{device}"


def doctor_username(device: DeviceId) -> str:
    """The account that the doctor looks at a device's rights with while its agent runs: a device's own
    has one client id, and whoever comes under that takes the agent's place. No device id has a slash."""
    return f"{device}/doctor"


def doctor_client_id(device: DeviceId) -> str:
    """The only client id of that account."""
    return f"{device}-doctor"


def device_acls(device: DeviceId) -> list[Json]:
    """What a device may do: hear and say its own topics, read the configuration, nothing else."""
    return [
        *(allow("subscribeLiteral", topic) for topic in readable_by(device)),
        # Each group's by itself, too: a device listens to those of its own groups alone.
        allow("subscribePattern", CONFIG_GROUPS),
        *(allow("publishClientReceive", topic) for topic in readable_by(device)),
        *(allow("publishClientSend", topic) for topic in writable_by(device)),
    ]


def operator_acls() -> list[Json]:
    """What an operator of the fleet may do: write layers and commands, read what devices report.
    No calls, no requests of devices, no rights of others."""
    return [
        *(allow("subscribePattern", topic) for topic in read_by_operators()),
        *(allow("publishClientReceive", topic) for topic in read_by_operators()),
        *(allow("publishClientSend", topic) for topic in written_by_operators()),
    ]


def relay_acls() -> list[Json]:
    """What a relay may do: hear all devices, speak to them, and provision their rights."""
    return [
        *(allow("subscribePattern", topic) for topic in (REQUESTS_SHARED, PRESENCE_SHARED)),
        *(
            allow(kind, topic)
            for topic in ("bellwire/v1/#", "$CONTROL/dynamic-security/#")
            for kind in ("subscribePattern", "publishClientReceive", "publishClientSend")
        ),
    ]


def client_entry(
    username: str, password: str, roles: list[str], *, iterations: int = _ITERATIONS
) -> Json:
    """A client as the plugin's file holds it: the password as PBKDF2-SHA512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return {
        "username": username,
        "password": base64.b64encode(digest).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": iterations,
        "roles": [{"rolename": role} for role in roles],
    }


def initial_document(relay_username: str, relay_password: str) -> Json:
    """The plugin's file for a new broker: one relay, and nobody else may do anything."""
    return {
        "clients": [client_entry(relay_username, relay_password, [RELAY_ROLE])],
        "roles": [{"rolename": RELAY_ROLE, "acls": relay_acls()}],
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
    }

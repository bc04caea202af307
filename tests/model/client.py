"""The world around a relay: people with devices who speak HTTP to it, and the presence of devices on
real MQTT connections. Names are those of one example; nothing here knows what a relay should do."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from sqlalchemy import Engine, create_engine, text

from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import presence_topic
from tests.conftest import PATIENCE_S
from tests.model.clocked_relay import ClockedRelay

_examples = itertools.count(1)
_ONLINE = text("SELECT online FROM connections WHERE device_id = :device")


def until(is_so: Callable[[], bool]) -> bool:
    """Waits until something is so; False where it never came."""
    give_up = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.002)
    return True


class Town:
    """The people of one example, under names that no other example has."""

    def __init__(self, relay: ClockedRelay, database: Engine) -> None:
        self._relay = relay
        self._database = database
        self._suffix = f".{next(_examples)}"
        # A connection for each request: one kept open would be closed by the relay as the clock is
        # moved, perhaps just as it is used again.
        self._http = httpx.Client(
            base_url=relay.url,
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._tokens: dict[tuple[str, str | None], str] = {}
        self._registered: set[tuple[str, str]] = set()
        self._sessions: dict[tuple[str, str], mqtt.Client] = {}

    def close(self) -> None:
        for client in self._sessions.values():
            client.disconnect()
            client.loop_stop()
        self._http.close()

    # Names.

    def real(self, name: str) -> str:
        return f"{name}{self._suffix}"

    def name_of(self, real: str) -> str:
        return real.removesuffix(self._suffix)

    def device(self, who: str, device: str) -> str:
        return f"{who}-{device}{self._suffix}"

    def device_name(self, who: str, real: str | None) -> str | None:
        return None if real is None else self.name_of(real).removeprefix(f"{who}-")

    # HTTP.

    def ask(
        self,
        method: str,
        path: str,
        *,
        by: tuple[str, str | None] | None = None,
        key: str | None = None,
        **more: Any,  # noqa: ANN401 - JSON
    ) -> httpx.Response:
        """Asks as a server, or by the token of somebody, perhaps of one device."""
        headers = {
            "Authorization": f"Bearer {self._relay.api_key if by is None else self._token(*by)}"
        }
        if key is not None:
            headers["Idempotency-Key"] = f"{key}{self._suffix}"
        begun = time.monotonic()
        while True:
            answer = self._http.request(method, path, headers=headers, **more)
            # On a busy machine PostgreSQL may be away for the relay, which asks it before it does anything.
            is_away = answer.status_code == 503 and "cannot read who may" in answer.text
            if not is_away or time.monotonic() - begun > PATIENCE_S:
                break
            time.sleep(0.1)
        assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def forget_tokens(self) -> None:
        """For when the clock has been moved further than tokens live."""
        self._tokens.clear()

    def _token(self, who: str, device: str | None) -> str:
        if (who, device) not in self._tokens:
            body = {"identity": self.real(who), "ttl": 86_400}
            if device is not None:
                body["device_id"] = self.device(who, device)
            answer = self.ask("POST", "/v1/tokens", json=body)
            assert answer.status_code == 201, answer.text
            self._tokens[who, device] = answer.json()["token"]
        return self._tokens[who, device]

    # Devices.

    def may_have_token(self, who: str, device: str | None) -> bool:
        """Whether there can be a token of somebody, and of this device: one lives with its device."""
        return device is None or (who, device) in self._registered

    def register(self, who: str, device: str, *kinds: str) -> dict[str, Any]:
        body = {
            "identity": self.real(who),
            "channels": [{"kind": kind} for kind in kinds],
            "rotate_credentials": "mqtt" in kinds,
        }
        answer = self.ask("PUT", f"/v1/devices/{self.device(who, device)}", json=body)
        assert answer.is_success, answer.text
        self._registered.add((who, device))
        registered: dict[str, Any] = answer.json()
        return registered

    def unregister(self, who: str, device: str) -> None:
        answer = self.ask("DELETE", f"/v1/devices/{self.device(who, device)}")
        assert answer.status_code == 204, answer.text
        self._registered.discard((who, device))
        self._tokens.pop((who, device), None)

    def connect(self, who: str, device: str) -> None:
        """Brings a device online, with its last will, until the relay knows."""
        access = self.register(who, device, "mqtt")["mqtt"]
        name = self.device(who, device)
        client = mqtt.Client(CallbackAPIVersion.VERSION2, access["client_id"], protocol=mqtt.MQTTv5)
        client.username_pw_set(access["username"], access["password"])
        topic = presence_topic(DeviceId(name))
        client.will_set(topic, json.dumps({"online": False}), qos=1, retain=True)
        host, _, port = access["url"].removeprefix("mqtt://").partition(":")
        client.connect(host, int(port))
        client.loop_start()
        client.publish(topic, json.dumps({"online": True}), qos=1, retain=True)
        self._sessions[who, device] = client
        assert until(lambda: self._is_online(name)), f"{name} is online and the relay does not know"

    def lose(self, who: str, device: str) -> None:
        """Takes a device off the network, so that its last will is published, until the relay knows."""
        client = self._sessions.pop((who, device))
        client.disconnect(reasoncode=ReasonCode(PacketTypes.DISCONNECT, identifier=4))
        client.loop_stop()
        name = self.device(who, device)
        assert until(lambda: not self._is_online(name)), (
            f"{name} is gone and the relay does not know"
        )

    @property
    def online(self) -> list[tuple[str, str]]:
        return sorted(self._sessions)

    def _is_online(self, device: str) -> bool:
        with self._database.connect() as connection:
            return bool(connection.execute(_ONLINE, {"device": device}).scalar())


def open_view(relay: ClockedRelay) -> Engine:
    """A view of a relay's database that does not go through the relay."""
    return create_engine(relay.database.replace("postgresql:", "postgresql+psycopg:"))

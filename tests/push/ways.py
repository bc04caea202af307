"""The three ways to ask for an operation: HTTP with a token, MQTT, and a stream. Each gives the
status and the document of the answer, so that a test can ask for the same in all of them."""

from dataclasses import dataclass
from typing import Any, Protocol

from tests.push.streams import Stream
from tests.push.support import Device, Running

_ROUTES = {"invite_more": "invite", "message": "messages"}

Answer = tuple[int, dict[str, Any]]


class Way(Protocol):
    """Somebody on one device, who asks."""

    @property
    def identity(self) -> str: ...

    @property
    def device(self) -> str: ...

    async def ask(self, operation: str, call_sid: str | None = None, **body: Any) -> Answer:  # noqa: ANN401
        """The status, and the call, the list of calls, or the problem."""
        ...


@dataclass
class OverHttp:
    """By an access token."""

    running: Running
    identity: str
    device: str

    async def ask(self, operation: str, call_sid: str | None = None, **body: Any) -> Answer:  # noqa: ANN401
        headers = await self.running.token(self.identity, self.device)
        http = self.running.http
        if operation == "list":
            answer = await http.get("/v1/calls", params=body, headers=headers)
        elif operation == "show":
            answer = await http.get(f"/v1/calls/{call_sid}", headers=headers)
        else:
            key = body.pop("idempotency_key", None)
            headers |= {} if key is None else {"Idempotency-Key": key}
            path = "" if operation == "invite" else f"/{_ROUTES.get(operation, operation)}"
            sid = "" if call_sid is None else f"/{call_sid}"
            answer = await http.post(f"/v1/calls{sid}{path}", json=body, headers=headers)
        return answer.status_code, answer.json()


@dataclass
class OverConnection:
    """By a document over MQTT or a stream."""

    connection: Device | Stream
    identity: str

    @property
    def device(self) -> str:
        return self.connection.name

    async def ask(self, operation: str, call_sid: str | None = None, **body: Any) -> Answer:  # noqa: ANN401
        of_call = {} if call_sid is None else {"call_sid": call_sid}
        answer = await self.connection.ask({"operation": operation, **of_call, **body})
        return answer["status"], _document(answer)


def _document(answer: dict[str, Any]) -> dict[str, Any]:
    """What the answer carries, as HTTP gives it."""
    if (problem := answer.get("problem")) is not None:
        return {name: value for name, value in problem.items() if value is not None}
    if answer.get("calls") is not None:
        return {"calls": answer["calls"], "next": answer["next"]}
    call: dict[str, Any] = answer["call"]
    said = answer.get("voice_event_sid")
    return call if said is None else call | {"voice_event_sid": said}

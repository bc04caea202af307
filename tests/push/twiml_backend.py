"""A backend that answers with TwiML, as one behind Twilio does: it takes only what Twilio's own library finds
signed, answers each voice request as a test has said for whom is called, and remembers what it was told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from twilio.request_validator import RequestValidator
from twilio.twiml.voice_response import VoiceResponse

from tests.conftest import PATIENCE_S
from tests.push.webhook_receiver import Answer, Backend, Received, backend, status

AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
TWILIO = RequestValidator(AUTH_TOKEN)


@dataclass(frozen=True)
class Asked:
    """One request that was signed, and its parameters."""

    method: str
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]


def checked(request: Received) -> Asked:
    """A request, once Twilio's library has found it signed."""
    method, target, _ = request.line.split(" ")
    parts = urlsplit(target)
    form = dict(
        parse_qsl(request.body.decode(), keep_blank_values=True, strict_parsing=bool(request.body))
    )
    url = f"http://{request.headers['host']}{target}"
    assert TWILIO.validate(url, form, request.headers["x-twilio-signature"]), (url, form)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return Asked(method, parts.path, {**query, **form}, request.headers)


def twiml(document: VoiceResponse | str) -> Answer:
    """Answers with a document."""
    return status(200, "Content-Type: text/xml", body=str(document).encode())


@dataclass
class TwimlBackend:
    """Answers by whom is called (`To`), and by path where that is not `/voice`."""

    http: Backend
    voice: dict[str, Answer] = field(default_factory=dict)
    elsewhere: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return self.http.url.removesuffix("/hook")

    async def told(self, path: str, call_sid: str, count: int = 1) -> list[Asked]:
        """Waits until so many requests of a call have come to a path."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.of(path, call_sid)) < count:
                self._came.clear()
                await self._came.wait()
        assert not self.faults
        return found

    def of(self, path: str, call_sid: str) -> list[Asked]:
        """The requests of a call that have come to a path."""
        return [
            one
            for one in self.asked
            if one.path == path and one.parameters.get("CallSid") == call_sid
        ]

    def voice_of(self, to: str) -> list[Asked]:
        """What was asked of whom is called."""
        return [
            one for one in self.asked if one.parameters.get("To") == to and one.path == "/voice"
        ]

    async def answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        try:
            asked = checked(request)
        except (AssertionError, ValueError, KeyError) as error:
            self.faults.append(f"{request.line}: {error!r}")
            await status(403)(request, writer)
            return
        self.asked.append(asked)
        self._came.set()
        if asked.path == "/voice":
            answer = self.voice.get(asked.parameters["To"], status(404))
        else:
            answer = self.elsewhere.get(asked.path, status(204))
        await answer(request, writer)


@asynccontextmanager
async def twiml_backend(port: int = 0) -> AsyncIterator[TwimlBackend]:
    async with backend(port=port) as http:
        here = TwimlBackend(http)
        http.answer = here.answer
        yield here

"""`/v1/webhooks`: the backends that are told of events, tested, and told again. Servers only."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Security
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from bellwire.push.access.tokens import Actor
from bellwire.push.api.who_asks import ServicesDep, require_server
from bellwire.signaling.calls.events import Moment
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import CallSidField
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.requests import Request

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

ServerDep = Annotated[Actor, Security(require_server, scopes=[Scope.WEBHOOKS])]

NamePath = Annotated[str, Path(max_length=64, description="as in the relay's settings")]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class LastAttemptAnswer(_Answer):
    """When this relay process last tried a webhook, and what came of it."""

    at: Moment
    taken: bool
    result: str


class WebhookAnswer(_Answer):
    """A webhook. `url` is without query and credentials; `events` is null where it gets every event;
    `owed` counts what it has not yet taken."""

    name: str
    url: str
    events: tuple[str, ...] | None
    owed: int
    last_attempt: LastAttemptAnswer | None


class WebhookListAnswer(_Answer):
    """All webhooks, by name."""

    webhooks: tuple[WebhookAnswer, ...]


class ReplayRequest(Request):
    """Which events to send again: from `since` on, until before `until`, of one call or of all."""

    since: AwareDatetime
    until: AwareDatetime | None = None
    call_sid: CallSidField | None = None


class ReplayAnswer(_Answer):
    """How many events will be sent again. `next_since` is there where there are more: ask again with
    it."""

    replayed: int
    next_since: Moment | None = Field(default=None)


class TestAnswer(_Answer):
    """The id of the test event, which its header `webhook-id` carries."""

    event_id: str


@router.get("")
async def list_webhooks(services: ServicesDep, _: ServerDep) -> WebhookListAnswer:
    """The webhooks of the relay's settings, and how they fare."""
    webhooks, channel = services.webhooks, services.webhook_channel
    owed = await services.database.read(webhooks.owed)
    answers = []
    for name, target in sorted(webhooks.targets.items()):
        last = channel.last.get(name)
        answers.append(
            WebhookAnswer(
                name=name,
                url=channel.shown_url(name),
                events=None if target.events is None else tuple(sorted(target.events)),
                owed=owed[name],
                last_attempt=None
                if last is None
                else LastAttemptAnswer(at=last.at, taken=last.taken, result=last.result),
            )
        )
    return WebhookListAnswer(webhooks=tuple(answers))


@router.post("/{name}/replay")
async def replay(
    name: NamePath, body: ReplayRequest, services: ServicesDep, _: ServerDep
) -> ReplayAnswer:
    """Sends a webhook the events of a time again, under the ids they had, as far as they are kept (7
    days). What it is still owed is not doubled."""
    if body.until is not None and body.until <= body.since:
        raise InvalidInput("until must be after since")
    replayed = await services.database.write(
        partial(
            services.webhooks.replay,
            name=name,
            since=body.since,
            until=body.until,
            call_sid=body.call_sid,
        )
    )
    return ReplayAnswer(replayed=replayed.count, next_since=replayed.next_since)


@router.post("/{name}/test", status_code=202)
async def test(name: NamePath, services: ServicesDep, _: ServerDep) -> TestAnswer:
    """Sends a webhook the event `webhook.test`, within two seconds; the list of webhooks then shows
    what came of it."""
    return TestAnswer(
        event_id=await services.database.write(partial(services.webhooks.test, name=name))
    )

"""`/v1/twilio/notifications`: Twilio in front. Its signature is the credentials."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from bellwire.push.api.who_asks import ServicesDep

router = APIRouter(prefix="/v1/twilio", tags=["twilio"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "description": "Twilio's `twi_*` keys, all of them strings",
                    "additionalProperties": {"type": "string"},
                    "required": ["twi_to", "twi_call_sid", "twi_message_type"],
                }
            }
        },
    }
}


class NotificationAnswer(BaseModel):
    """On how many push channels a notification goes out; `repeated`: it has before."""

    deliveries: int
    repeated: bool


@router.post("/notifications", openapi_extra=_BODY)
async def notify(
    request: Request,
    services: ServicesDep,
    x_twilio_signature: Annotated[
        str | None, Header(description="HMAC-SHA1 of the URL, which holds `bodySHA256`")
    ] = None,
) -> NotificationAnswer:
    """Twilio's Client Call Notification Webhook (`clientNotificationUrl`): forwards its keys to the
    apps of `twi_to`. 404 where these have registered no device."""
    url = url_asked_for(request, services.settings.public_url)
    forwarded = await services.twilio.forward(url, x_twilio_signature, await request.body())
    return NotificationAnswer(deliveries=forwarded.deliveries, repeated=forwarded.repeated)


def url_asked_for(request: Request, public_url: str | None) -> str:
    """The URL byte for byte, for it is signed; a proxy may have changed what stands before the path."""
    path = request.scope["raw_path"].decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    base = public_url or f"{request.scope['scheme']}://{request.headers.get('host', '')}"
    return f"{base.rstrip('/')}{path}" + (f"?{query}" if query else "")

"""FastAPI with the relay's bodies and answers and nothing behind them: no auth, no rules, no store."""

import socket
import sys
from datetime import UTC, datetime, timedelta

import uvicorn
from fastapi import FastAPI

from bellwire.signaling.calls.calls import Call, User, UserState
from bellwire.signaling.identifiers import CallSid, Identity
from bellwire.signaling.wire.answers import CallAnswer
from bellwire.signaling.wire.operations import InviteRequest, OperationRequest

_NOW = datetime.now(UTC)
_UNTIL = _NOW + timedelta(seconds=60)
_CALL = Call(
    CallSid("CA" + "0" * 32),
    Identity("alice"),
    (
        User(Identity("alice"), UserState.ACCEPTED, _UNTIL),
        User(Identity("bob"), UserState.INVITING, _UNTIL, invite_id="x"),
    ),
    _NOW,
    60,
)

app = FastAPI()


@app.post("/v1/calls", status_code=201)
async def create(body: InviteRequest) -> CallAnswer:
    """Answers as the relay does."""
    del body
    return CallAnswer.of(_CALL)


@app.post("/v1/calls/{call_sid}/{operation}")
async def operate(call_sid: str, operation: str, body: OperationRequest) -> CallAnswer:
    """Answers as the relay does."""
    del call_sid, operation, body
    return CallAnswer.of(_CALL)


def main() -> None:
    """Serves on the socket whose descriptor is given."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(app, log_config=None, access_log=False, loop="uvloop")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

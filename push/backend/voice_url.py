"""The voice URL, as a TwiML App of Twilio's has it: asked, for each call that an app or device wants to
make, whom to ring. A slow backend holds up few callers, for a short time; the relay's other work never waits
for it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from bellwire.push.backend.requests import BackendAnswer, BackendAtFault, BackendRequests
from bellwire.signaling.calls.dials import Callback
from bellwire.signaling.errors import (
    BadGateway,
    GatewayTimeout,
    InvalidInput,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from bellwire.signaling.identifiers import CallSid, Identity, wire_address
from bellwire.signaling.twiml import (
    TwimlAnswer,
    TwimlDial,
    TwimlHangup,
    TwimlReject,
    parse_answer,
)

log = structlog.get_logger(__name__)

API_VERSION = "2010-04-01"
"""What Twilio's requests say; the helper libraries know no other."""

AT_ONCE = 64
"""Calls of one relay whose backend is being asked."""

AT_ONCE_OF_ONE = 4
"""Of one identity's."""

_RESERVED = frozenset(
    name.lower()
    for name in (
        *("AccountSid", "ApiVersion", "ApplicationSid", "CallSid", "CallStatus", "CallToken"),
        *(
            "Called",
            "Caller",
            "CallerName",
            "CallbackSource",
            "CallDuration",
            "Digits",
            "Direction",
        ),
        *(
            "DialBridged",
            "DialCallDuration",
            "DialCallSid",
            "DialCallStatus",
            "ErrorCode",
            "ErrorUrl",
        ),
        *(
            "ForwardedFrom",
            "From",
            "ParentCallSid",
            "SequenceNumber",
            "StirVerstat",
            "Timestamp",
            "To",
        ),
    )
)

_RESULTS: Mapping[type[TwimlAnswer], str] = {
    TwimlDial: "dial",
    TwimlReject: "reject",
    TwimlHangup: "hangup",
}


class VoiceUrl:
    """Asks whom to ring.

    Args:
        requests: The way to the backend.
        callback: The URL, and how it is asked.
        timeout_s: Within how many seconds the answer must be there.
        account_sid: The relay's.
        count: Called with what came of each request: `dial`, `reject`, `hangup`, `silent`, `broken`, `busy`.
    """

    def __init__(
        self,
        requests: BackendRequests,
        callback: Callback,
        *,
        timeout_s: float,
        account_sid: str,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._requests = requests
        self._callback = callback
        self._timeout_s = timeout_s
        self._account_sid = account_sid
        self._count = count
        self._asked_by: Counter[Identity] = Counter()

    async def ask(
        self, call_sid: CallSid, caller: Identity, to: str, own: Mapping[str, str]
    ) -> TwimlAnswer:
        """What the backend answers.

        Args:
            call_sid: The call's, if there is to be one.
            caller: Who calls.
            to: Whom the app has asked for.
            own: The app's own parameters. One that bears a name of Twilio's, in whatever case, is left out:
                a backend believes it to be the relay's.

        Raises:
            GatewayTimeout: it has not answered in time.
            BadGateway: it could not be reached, or has not answered with TwiML that can be carried out.
            Unavailable, TooManyRequests: too many calls are waiting for it, of all or of the caller's.
        """
        with self._place_for(caller):
            return await self._ask(call_sid, caller, to, own)

    @contextmanager
    def _place_for(self, caller: Identity) -> Iterator[None]:
        if self._asked_by[caller] >= AT_ONCE_OF_ONE:
            self._count("busy")
            raise TooManyRequests(
                f"{AT_ONCE_OF_ONE} calls of {caller} are waiting for the backend's answer already"
            )
        if self._asked_by.total() >= AT_ONCE:
            self._count("busy")
            raise Unavailable(f"{AT_ONCE} calls are waiting for the backend's answer: try again")
        self._asked_by[caller] += 1
        try:
            yield
        finally:
            self._asked_by[caller] -= 1
            if not self._asked_by[caller]:
                del self._asked_by[caller]

    async def _ask(
        self, call_sid: CallSid, caller: Identity, to: str, own: Mapping[str, str]
    ) -> TwimlAnswer:
        address = wire_address(caller)
        parameters = {
            **{name: value for name, value in own.items() if name.lower() not in _RESERVED},
            "CallSid": call_sid,
            "AccountSid": self._account_sid,
            "From": address,
            "Caller": address,
            "To": to,
            "Called": to,
            "Direction": "inbound",
            "CallStatus": "ringing",
            "ApiVersion": API_VERSION,
        }
        try:
            answer = await self._requests.ask(
                self._callback, parameters, limit_s=self._timeout_s, request_id=call_sid
            )
        except TimeoutError as error:
            self._count("silent")
            log.warning("voice url has not answered in time", call_sid=call_sid, caller=caller)
            raise GatewayTimeout(
                f"the backend has not said within {self._timeout_s:g} s whom to ring"
            ) from error
        except BackendAtFault as error:
            # What is wrong with the operator's own network, an app need not know.
            raise self._broken(call_sid, caller, str(error)) from error
        return self._read(call_sid, caller, answer)

    def _read(self, call_sid: CallSid, caller: Identity, answer: BackendAnswer) -> TwimlAnswer:
        if not answer.taken:
            raise self._broken(call_sid, caller, f"it answered {answer.status}")
        try:
            read = parse_answer(answer.body, self._callback.url)
        except (InvalidInput, TooLarge) as error:
            raise self._broken(call_sid, caller, error.detail, shown=error.detail) from error
        self._count(_RESULTS[type(read)])
        log.info(
            "voice url answered",
            call_sid=call_sid,
            caller=caller,
            answer=_RESULTS[type(read)],
        )
        return read

    def _broken(
        self, call_sid: CallSid, caller: Identity, reason: str, shown: str = ""
    ) -> BadGateway:
        self._count("broken")
        log.warning(
            "voice url gave no good answer", call_sid=call_sid, caller=caller, reason=reason
        )
        return BadGateway(
            "the backend gave no answer that says whom to ring"
            + (f": {shown}" if shown else "; the relay's log says more")
        )

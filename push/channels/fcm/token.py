"""The OAuth token with which an app sends: fetched in a thread of its own, ahead of its expiry, so
that no push and no other app ever waits for one that is still good. And the fault of an app, which a
token or an answer to a push begins and ends."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import structlog
from firebase_admin.credentials import Base
from google.auth import exceptions
from google.auth.transport import Request

from bellwire.config.waiting import Alarm, Sleep, backoff_s
from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed
from bellwire.push.metrics import Metrics

log = structlog.get_logger(__name__)

_AHEAD = timedelta(minutes=3, seconds=45)
"""Google's own margin (google.auth REFRESH_THRESHOLD): earlier its metadata server gives the old
token again."""

_UNLIMITED = timedelta(hours=1)
_SKEW = timedelta(seconds=5)
_SHORTEST_WAIT_S = 1.0
_RETRY_FIRST_S = 1.0
_RETRY_LONGEST_S = 5.0
_AT_FAULT_S = 30.0
_REQUEST_S = 10.0
_BROKEN = (exceptions.GoogleAuthError, OSError, ValueError, TypeError, LookupError, AttributeError)
"""What google-auth raises, of an answer that makes no sense too."""


@dataclass(slots=True, eq=False)
class Token:
    """The headers that show a token, for how long it was given, and whether FCM has taken it."""

    headers: Mapping[str, str]
    life: timedelta
    is_proven: bool = False


class FreshToken:
    """An app's token. `run` must be running for there to be one.

    Args:
        fetch: Gets a token; it blocks, and raises DeliveryFailed or ChannelAtFault.
        fault: Is told while Google refuses to give one.
    """

    def __init__(
        self,
        fetch: Callable[[], Token],
        fault: "AppFault",
        *,
        now: Callable[[], datetime],
        sleep: Sleep,
    ) -> None:
        self._fetch = fetch
        self._fault = fault
        self._now = now
        self._alarm = Alarm(sleep)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fcm-token")
        self._token: Token | None = None
        self._good_until = datetime.min.replace(tzinfo=UTC)
        self._trouble: DeliveryFailed | None = None
        self._failures = 0
        self._is_fetching = True  # `run` begins with it
        self._fetched = asyncio.Event()

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the token that is held."""
        return {} if self._token is None else self._token.headers

    async def get(self) -> Token:
        """A token that is good; waits while the first is fetched.

        Raises:
            DeliveryFailed: there is none, for now.
            ChannelAtFault: Google refuses to give one.
        """
        while self._token is None or self._now() >= self._good_until:
            if self._trouble is not None:
                raise type(self._trouble)(str(self._trouble))
            self._ask()
            await self._fetched.wait()
        return self._token

    def refused(self, token: Token) -> None:
        """FCM does not take this token: it is replaced."""
        if token is self._token:
            self._token = None
            self._ask()

    async def run(self) -> None:
        """Fetches tokens until cancelled."""
        try:
            while True:
                wait_s = await self._renew()
                fetched, self._fetched = self._fetched, asyncio.Event()
                fetched.set()
                await self._alarm.wait(wait_s)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> None:
        if not self._is_fetching:
            self._alarm.ring()

    async def _renew(self) -> float:
        """Fetches a token; returns in how many seconds to fetch the next."""
        self._is_fetching = True
        try:
            token = await asyncio.get_running_loop().run_in_executor(self._thread, self._fetch)
        except DeliveryFailed as trouble:
            self._trouble = trouble
            if isinstance(trouble, ChannelAtFault):
                self._fault.begins("token", str(trouble))
                return _AT_FAULT_S
            self._failures += 1
            return backoff_s(
                self._failures - 1, first_s=_RETRY_FIRST_S, longest_s=_RETRY_LONGEST_S, least=1.0
            )
        finally:
            self._is_fetching = False
        self._fault.ends("token")
        self._token, self._trouble, self._failures = token, None, 0
        self._good_until = self._now() + token.life - min(_SKEW, token.life / 10)
        ahead = min(_AHEAD, token.life / 2)
        return max(_SHORTEST_WAIT_S, (token.life - ahead).total_seconds())


def fetch_token(account: Base, request: Request, source: str) -> Token:
    """Asks Google for a token. It blocks, for some seconds where Google is slow.

    Args:
        account: Whose.
        request: The way there.
        source: Where the account stands, for who has to mend it.

    Raises:
        DeliveryFailed: Google was not reached, or cannot now.
        ChannelAtFault: it refuses.
    """
    try:
        credential = account.get_credential()
        credential.refresh(request)
        headers: dict[str, str] = {}
        credential.apply(headers)
        expiry: datetime | None = credential.expiry  # naive, in UTC
    except exceptions.DefaultCredentialsError as error:
        raise ChannelAtFault(
            f"this machine has no Google identity ({said_by(error)}): give {source}"
        ) from None
    except exceptions.RefreshError as error:
        if error.retryable:
            raise DeliveryFailed(f"Google gives no access token now: {said_by(error)}") from None
        raise ChannelAtFault(
            f"Google refuses to give an access token ({said_by(error)}): check this machine's"
            f" clock, and that the key in {source} has not been revoked"
        ) from None
    except _BROKEN as error:
        raise DeliveryFailed(f"no access token came from Google: {type(error).__name__}") from None
    life = _UNLIMITED if expiry is None else expiry - datetime.now(UTC).replace(tzinfo=None)
    if life <= timedelta(0):
        raise DeliveryFailed("Google gave an access token that has expired already")
    return Token(headers, life)


def bounded(request: Request, is_closing: Callable[[], bool]) -> Request:
    """The same way to Google, at most 10 s a request instead of 120, and closed once the relay stops."""

    def ask(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as google-auth's own
        if is_closing():
            raise OSError("the relay is stopping")
        return request(*args, **{**kwargs, "timeout": _REQUEST_S})

    return ask  # type: ignore[return-value] # google-auth only calls it


def said_by(error: Exception) -> str:
    """The first words of an error, on one line, without what else it carries."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text[:400].split())[:200]


Cause = Literal["token", "send"]
"""No token is given; or what is sent with one is refused."""


class AppFault:
    """That one app cannot push until an operator mends something: said once per change, and on a gauge."""

    def __init__(self, metrics: Metrics, channel: str, app: str) -> None:
        self._channel = channel
        self._app = app
        self._gauge = metrics.push_app_fault.labels(channel, app)
        self._gauge.set(0)
        self._reasons: dict[Cause, str] = {}

    def begins(self, cause: Cause, reason: str) -> None:
        """Something is wrong, or still is."""
        if self._reasons.get(cause) != reason:
            self._reasons[cause] = reason
            self._gauge.set(1)
            log.error("push app at fault", channel=self._channel, app=self._app, reason=reason)

    def ends(self, cause: Cause) -> None:
        """It is well, or still is."""
        if self._reasons.pop(cause, None) is not None and not self._reasons:
            self._gauge.set(0)
            log.info("push app well again", channel=self._channel, app=self._app)

"""FCM to Android apps: data-only messages of high priority, by firebase-admin (spec §2), and what FCM's
answers mean.

A channel holds a sender for each app; a sender its account, its access token (`token`) and one line. The
line stands in for firebase-admin's own HTTP client, which refreshes tokens on the event loop, tries four
times by itself and waits for 120 s: here a request is one attempt, over one HTTP/2 connection.
"""

import asyncio
import json
import secrets
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import firebase_admin
import httpx
import requests
from firebase_admin import credentials, messaging
from firebase_admin._http_client import METRICS_HEADERS
from firebase_admin.exceptions import FirebaseError
from google.auth.transport.requests import Request
from requests.adapters import HTTPAdapter

from bellwire.config.relay import FcmApp
from bellwire.config.waiting import Sleep
from bellwire.push.channels.channel import (
    ATTEMPT_S,
    Addressee,
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
    TokenDead,
)
from bellwire.push.channels.fcm.token import (
    AppFault,
    FreshToken,
    Token,
    bounded,
    fetch_token,
    said_by,
)
from bellwire.push.channels.payload import PushPayload, fcm_data
from bellwire.push.channels.retry_after import read_retry_after
from bellwire.push.metrics import Metrics
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.calls.events import CallEvent, what_to_shorten
from bellwire.signaling.errors import InvalidInput

_IDLE_S = 120.0
"""Google's front ends close a connection that is idle for four minutes: ours goes before."""

_AT_ONCE = 100
"""As many as httpcore has streams: those that wait in its own queue cost it time each."""

_LONGEST_TTL_S = 2_419_200
_LONGEST_RETRY_AFTER_S = 86_400.0


class FcmChannel:
    """See `push.channels.channel.Channel`. `run` must be running for anything to move.

    Args:
        apps: Android apps by package name.
        payload: Writes the keys.
        metrics: Counts apps at fault.

    Raises:
        InvalidInput: an app's settings are wrong. Files are read: construct it in a thread.
    """

    kind = "fcm"

    def __init__(
        self,
        apps: Mapping[str, FcmApp],
        payload: PushPayload,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._payload = payload
        self._senders = {
            name: FcmSender(name, app, AppFault(metrics, self.kind, name), now=now, sleep=sleep)
            for name, app in apps.items()
        }

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        """See `Channel.compose`."""
        keys = self._payload.keys(event, to)
        return None if keys is None else fcm_data(keys, event.event, what_to_shorten(event))

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """See `Channel.send`. Returns the message's name, `projects/.../messages/...`."""
        sender = self._senders.get(delivery.app)
        if sender is None:
            raise ChannelAtFault(f"the relay's settings name no FCM app {delivery.app}")
        if not delivery.token:
            raise DeliveryRefused("the device has no FCM token")
        data: dict[str, str] = json.loads(delivery.payload)
        return await sender.send(delivery.token, data, delivery.call_sid, left_s)

    async def run(self) -> None:
        """Keeps each app's access token fresh until cancelled; then closes."""
        async with asyncio.TaskGroup() as tasks:
            for sender in self._senders.values():
                tasks.create_task(sender.run())


class FcmSender:
    """Sends messages of one app. `run` must be running for anything to move.

    Raises:
        InvalidInput: its settings are wrong; says which, and never what a file holds.
    """

    def __init__(
        self, name: str, app: FcmApp, fault: AppFault, *, now: Callable[[], datetime], sleep: Sleep
    ) -> None:
        self._name = name
        self._settings = app
        self._fault = fault
        self._now = now
        self._account = _account(name, app)
        self._trust = _trust(name, app), _trust(name, app)  # each library writes its own into it
        self._server = _server(name, app)
        self._token = FreshToken(self._fetch_token, fault, now=now, sleep=sleep)
        self._line = FcmLine(self._trust[0], lambda: self._token.headers)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._firebase: firebase_admin.App | None = None
        self._is_closing = False

    async def send(
        self, token: str, data: dict[str, str], collapse_key: str | None, left_s: float
    ) -> str:
        """Sends a data message once, within `left_s` and `ATTEMPT_S` seconds; returns its name.

        Raises:
            DeliveryFailed, DeliveryRefused: as `Channel.send`.
        """
        clock = asyncio.get_running_loop().time
        ends_at = clock() + left_s
        limit_s = min(left_s, ATTEMPT_S)
        try:
            async with asyncio.timeout(limit_s):
                access = await self._token.get()
                async with self._slots:
                    message = _message(token, data, collapse_key, ends_at - clock())
                    return await self._attempt(message, access)
        except TimeoutError:
            raise DeliveryFailed(f"FCM did not answer within {limit_s:.1f} s") from None

    async def run(self) -> None:
        """Keeps the access token fresh until cancelled; then closes."""
        try:
            await self._token.run()
        finally:
            self._is_closing = True
            await self._line.close()
            if self._firebase is not None:
                # It runs an event loop of its own to close what it believes to be its client.
                await asyncio.to_thread(firebase_admin.delete_app, self._firebase)

    async def _attempt(self, message: messaging.Message, access: Token) -> str:
        if self._is_closing:
            raise DeliveryFailed("the relay is stopping")
        try:
            batch = await messaging.send_each_async([message], app=self._firebase)
        except ValueError as error:
            raise DeliveryRefused(f"no FCM message: {said_by(error)}") from None
        except FirebaseError as error:  # it could not make sense of the answer
            raise DeliveryFailed(f"FCM was not understood: {type(error.cause).__name__}") from None
        answer = batch.responses[0]
        if answer.exception is not None:
            raise self._judge(answer.exception, access) from None
        if not answer.message_id:
            raise DeliveryFailed("FCM did not name the message")
        self._accepted(access)
        return str(answer.message_id)

    def _judge(self, error: FirebaseError, access: Token) -> Exception:
        """What an answer means: https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode"""
        response = error.http_response
        status = 0 if response is None else int(response.status_code)
        said = f"FCM {status or 'unreachable'}: {_reason(error)}"
        if isinstance(error, messaging.UnregisteredError | messaging.SenderIdMismatchError):
            self._accepted(access)
            return TokenDead(said)
        if isinstance(error, messaging.ThirdPartyAuthError):
            return self._at_fault(
                f"{said}: check the APNs key or web push certificate in the project's Firebase console"
            )
        if status == 401:
            self._token.refused(access)
            if access.is_proven:
                return DeliveryFailed(f"{said}: another access token is fetched")
            return self._at_fault(
                f"{said}: check this machine's clock and {_source(self._name, self._settings)}"
            )
        if status == 403:
            return self._at_fault(
                f"{said}: enable the Firebase Cloud Messaging API in the project, and give its"
                " service account the role Firebase Cloud Messaging API Admin"
            )
        if status == 404:
            return self._at_fault(f"{said}: check project_id of the FCM app {self._name}")
        if 400 <= status < 500 and status not in (408, 429):
            return DeliveryRefused(said)
        asked = None if response is None else response.headers.get("retry-after")
        wait_s = read_retry_after(asked, self._now(), longest_s=_LONGEST_RETRY_AFTER_S)
        return DeliveryFailed(said, wait_s)

    def _accepted(self, access: Token) -> None:
        access.is_proven = True
        self._fault.ends("send")

    def _at_fault(self, reason: str) -> ChannelAtFault:
        self._fault.begins("send", reason)
        return ChannelAtFault(reason)

    def _fetch_token(self) -> Token:
        """In the token's thread: what firebase-admin sets up may ask the machine who it is."""
        with requests.Session() as session:
            session.mount("https://", _Trusting(self._trust[1]))
            request = bounded(Request(session), lambda: self._is_closing)
            source = _source(self._name, self._settings)
            token = fetch_token(self._account, request, source)
        if self._firebase is None:
            self._firebase = self._open()
        return token

    def _open(self) -> firebase_admin.App:
        app = firebase_admin.initialize_app(
            self._account,
            {"projectId": self._settings.project_id},
            f"bellwire-{self._name}-{secrets.token_hex(8)}",
        )
        try:
            service = messaging._get_messaging_service(app)
        except ValueError as error:
            firebase_admin.delete_app(app)
            raise ChannelAtFault(f"give project_id of the FCM app {self._name}") from error
        service._async_client = self._line
        if self._server is not None:
            path = service._fcm_url.partition("googleapis.com")[2]
            service._fcm_url = self._server + path
        return app


class _Trusting(HTTPAdapter):
    """Trusts the same certificates as the line to FCM does."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._trust = trust
        super().__init__()

    def init_poolmanager(self, *args: object, **kwargs: object) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._trust)  # type: ignore[arg-type]


def _message(
    token: str, data: dict[str, str], collapse_key: str | None, left_s: float
) -> messaging.Message:
    # FCM takes whole seconds. Rounded down no message outlives its invite, and under one second
    # left is 0: now or never, as FCM reads it.
    ttl = timedelta(seconds=min(_LONGEST_TTL_S, max(0, int(left_s))))
    android = messaging.AndroidConfig(priority="high", ttl=ttl, collapse_key=collapse_key or None)
    message = messaging.Message(data=data, android=android)
    # The constructor warns that installation ids will come; apps have tokens, and FCM takes both.
    message.token = token
    return message


def _reason(error: FirebaseError) -> str:
    if error.http_response is None:
        return type(error.cause).__name__
    return f"{error.code} {said_by(error)}"


def _source(name: str, app: FcmApp) -> str:
    setting = f"credentials_file of the FCM app {name}"
    return setting if app.credentials_file is None else f"{setting}, {app.credentials_file}"


def _account(name: str, app: FcmApp) -> credentials.Base:
    if app.credentials_file is None:
        return (
            credentials.ApplicationDefault()
        )  # asked in the token's thread: it may use the network
    source = _source(name, app)
    try:
        account = credentials.Certificate(str(app.credentials_file))
    except OSError as error:
        raise InvalidInput(f"{source}, cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError):  # they quote the file
        raise InvalidInput(f"{source}, is no service account's key file (JSON)") from None
    if not (app.project_id or account.project_id):
        raise InvalidInput(f"{source}, names no project: give project_id too")
    return account


def _trust(name: str, app: FcmApp) -> ssl.SSLContext:
    """The usual authorities, and the app's own beside them."""
    trust = httpx.create_ssl_context()
    if app.ca_file is not None:
        try:
            trust.load_verify_locations(app.ca_file)
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or "it holds no certificate"
            raise InvalidInput(
                f"ca_file of the FCM app {name}, {app.ca_file}, cannot be used: {reason}"
            ) from None
    return trust


def _server(name: str, app: FcmApp) -> str | None:
    if app.server is None:
        return None
    try:
        url = httpx.URL(app.server)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput(f"server of the FCM app {name} must be a URL, http(s)://HOST[:PORT]")
    return app.server.rstrip("/")


class FcmLine:
    """A connection that is made when it is needed and replaced once anything has gone wrong on it.

    httpcore does not reset the stream of a request that was cancelled, so streams that stall use up
    those that the server allows until it can send no more; and a cancelled write breaks TLS. What is
    in flight on a connection that is given up may end on it.

    Args:
        trust: Whose certificates are trusted.
        authorization: The headers that authorize a request.
    """

    def __init__(
        self, trust: ssl.SSLContext, authorization: Callable[[], Mapping[str, str]]
    ) -> None:
        self._trust = trust
        self._authorization = authorization
        self._connection: _Connection | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        json: object,  # the library's name for it
    ) -> httpx.Response:
        """Sends a request once; cancelling it gives it up.

        Raises:
            httpx.HTTPStatusError: the answer is no success.
            httpx.TransportError: there was no answer.
        """
        request = httpx.Request(
            method,
            url,
            headers={
                **headers,
                **METRICS_HEADERS,
                **self._authorization(),
                "content-type": "application/json",
            },
            content=_encode(json),
        )
        connection = self._current()
        connection.in_flight += 1
        try:
            response = await connection.transport.handle_async_request(request)
            await response.aread()
        except BaseException:
            self._give_up(connection)
            raise
        finally:
            connection.in_flight -= 1
            await connection.close_if_done()
        response.request = request
        return response.raise_for_status()

    async def aclose(self) -> None:
        """Does nothing: firebase-admin calls it in an event loop that is not the connection's."""

    async def close(self) -> None:
        """Closes the line, once what is in flight has ended."""
        self._closed = True
        connection = self._connection
        if connection is not None:
            self._give_up(connection)
            await connection.close_if_done()

    def _current(self) -> "_Connection":
        if self._closed:
            raise httpx.TransportError("the relay is stopping")
        if self._connection is None:
            self._connection = _Connection(self._trust)
        return self._connection

    def _give_up(self, connection: "_Connection") -> None:
        connection.is_given_up = True
        if self._connection is connection:
            self._connection = None


class _Connection:
    """One connection, and how many requests are in flight on it."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        limits = httpx.Limits(keepalive_expiry=_IDLE_S)
        self.transport = httpx.AsyncHTTPTransport(verify=trust, http2=True, limits=limits)
        self.in_flight = 0
        self.is_given_up = False

    async def close_if_done(self) -> None:
        if self.is_given_up and not self.in_flight:
            await self.transport.aclose()


def _encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

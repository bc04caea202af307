"""How the commands talk to a relay: its HTTP interface, with the operator's API key."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import httpx
import typer
from pydantic import BaseModel, ValidationError

from bellwire.config.relay import default_data_folder
from bellwire.signaling.errors import InvalidInput, Refusal, Unavailable
from bellwire.signaling.wire.answers import (
    ApiKeyListAnswer,
    CallAnswer,
    CallDeliveriesAnswer,
    CallListAnswer,
    DeviceAnswer,
    DeviceListAnswer,
    NewApiKeyAnswer,
    Problem,
    RevokedTokensAnswer,
    TokenAnswer,
)
from bellwire.signaling.wire.requests import (
    ApiKeyRequest,
    DeviceRequest,
    RevokeTokensRequest,
    RotateKeyRequest,
    TokenRequest,
)

A = TypeVar("A", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8080"
_TIMEOUT_S = 15.0

RelayOption = Annotated[
    str | None,
    typer.Option(
        "--relay",
        metavar="URL",
        envvar="BELLWIRE_RELAY",
        help=f"The relay. [what DIR says, else {DEFAULT_URL}]",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="BELLWIRE_DATA", help="The data directory of a relay here."
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        envvar="BELLWIRE_API_KEY_FILE",
        help="The operator's API key; or set BELLWIRE_API_KEY. [DIR/api-key]",
    ),
]


class RelayRefused(Refusal):
    """The relay refused; `problem` is its own document."""

    slug = "relay-refused"
    title = "The relay refused"

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


@dataclass(frozen=True, slots=True)
class RelayAccess:
    """A relay's URL, and the API key to show it."""

    url: str
    api_key: str = field(repr=False)


def find_relay(relay: str | None, data: Path | None, key_file: Path | None) -> RelayAccess:
    """The relay that the options mean.

    Raises:
        InvalidInput: no API key is to be found; says where one would be.
    """
    folder = data or default_data_folder()
    return RelayAccess(relay or _url_in(folder), _api_key(folder, key_file))


def _url_in(folder: Path) -> str:
    try:
        url: str = json.loads((folder / "relay.json").read_text())["url"]
    except (OSError, ValueError, KeyError):
        return DEFAULT_URL
    return url


def _api_key(folder: Path, key_file: Path | None) -> str:
    if key_file is None and (key := os.environ.get("BELLWIRE_API_KEY")):
        return key
    path = key_file or folder / "api-key"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise InvalidInput(
            f"no API key: {path} cannot be read ({error.strerror}). Name the relay's data directory with"
            " --data DIR, or the key's file with --api-key-file FILE, or set BELLWIRE_API_KEY"
        ) from error


class RelayClient:
    """A relay over HTTP. Its methods raise `RelayRefused`, or `Unavailable` where it is not reached."""

    def __init__(self, access: RelayAccess) -> None:
        self.url = access.url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=_TIMEOUT_S,
            headers={"Authorization": f"Bearer {access.api_key}"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def create_call(self, invite: Mapping[str, Any]) -> CallAnswer:
        """Makes a call from a JSON body."""
        return self._ask(CallAnswer, "POST", "/v1/calls", body=invite)

    def create_call_from_twiml(self, document: bytes) -> CallAnswer:
        """Makes a call from TwiML."""
        return self._ask(
            CallAnswer, "POST", "/v1/calls", content=document, media_type="application/xml"
        )

    def call(self, call_sid: str) -> CallAnswer:
        """A call as it stands."""
        return self._ask(CallAnswer, "GET", f"/v1/calls/{call_sid}")

    def calls(self, count: int = 20) -> CallListAnswer:
        """The newest calls."""
        return self._ask(CallListAnswer, "GET", f"/v1/calls?count={count}")

    def deliveries(self, call_sid: str) -> CallDeliveriesAnswer:
        """What became of a call's deliveries."""
        return self._ask(CallDeliveriesAnswer, "GET", f"/v1/calls/{call_sid}/deliveries")

    def operate(self, call_sid: str, operation: str, body: Mapping[str, Any]) -> CallAnswer:
        """Does an operation to a call."""
        return self._ask(CallAnswer, "POST", f"/v1/calls/{call_sid}/{operation}", body=body)

    def put_device(self, device_id: str, request: DeviceRequest) -> DeviceAnswer:
        """Registers a device."""
        return self._ask(DeviceAnswer, "PUT", f"/v1/devices/{device_id}", body=request)

    def device(self, device_id: str) -> DeviceAnswer:
        """A device."""
        return self._ask(DeviceAnswer, "GET", f"/v1/devices/{device_id}")

    def devices(self) -> DeviceListAnswer:
        """All devices."""
        return self._ask(DeviceListAnswer, "GET", "/v1/devices")

    def delete_device(self, device_id: str) -> None:
        """Removes a device."""
        self._granted("DELETE", f"/v1/devices/{device_id}")

    def issue_token(self, request: TokenRequest) -> TokenAnswer:
        """An access token."""
        return self._ask(TokenAnswer, "POST", "/v1/tokens", body=request)

    def revoke_tokens(self, request: RevokeTokensRequest) -> RevokedTokensAnswer:
        """Ends access tokens."""
        return self._ask(RevokedTokensAnswer, "POST", "/v1/tokens/revoke", body=request)

    def add_key(self, request: ApiKeyRequest) -> NewApiKeyAnswer:
        """Makes an API key."""
        return self._ask(NewApiKeyAnswer, "POST", "/v1/keys", body=request)

    def keys(self) -> ApiKeyListAnswer:
        """All API keys."""
        return self._ask(ApiKeyListAnswer, "GET", "/v1/keys")

    def rotate_key(self, name: str, request: RotateKeyRequest) -> NewApiKeyAnswer:
        """Makes an API key in place of one."""
        return self._ask(NewApiKeyAnswer, "POST", f"/v1/keys/{name}/rotate", body=request)

    def revoke_key(self, name: str) -> None:
        """Ends an API key."""
        self._granted("DELETE", f"/v1/keys/{name}")

    def get(self, path: str) -> httpx.Response:
        """The plain answer of a path: for `bellwire doctor`.

        Raises:
            Unavailable: the relay is not reached.
        """
        return self._send("GET", path)

    def _ask(
        self,
        answer: type[A],
        method: str,
        path: str,
        *,
        body: BaseModel | Mapping[str, Any] | None = None,
        content: bytes | None = None,
        media_type: str = "application/json",
    ) -> A:
        if isinstance(body, BaseModel):
            content = body.model_dump_json(exclude_none=True).encode()
        elif body is not None:
            content = json.dumps(body).encode()
        response = self._granted(method, path, content=content, media_type=media_type)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise self._no_relay(response) from error

    def _granted(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        media_type: str = "application/json",
    ) -> httpx.Response:
        response = self._send(method, path, content=content, media_type=media_type)
        if response.is_success:
            return response
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError as error:
            raise self._no_relay(response) from error
        raise RelayRefused(problem)

    def _no_relay(self, response: httpx.Response) -> Unavailable:
        return Unavailable(
            f"{self.url} answered {response.status_code}, but not as a Bellwire relay does"
        )

    def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        media_type: str = "application/json",
    ) -> httpx.Response:
        headers = {} if content is None else {"Content-Type": media_type}
        try:
            return self._http.request(method, path, content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"no relay answers at {self.url} ({error}): start one with `bellwire relay`,"
                " or name it with --relay URL"
            ) from error

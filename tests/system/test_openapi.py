"""schemathesis asks a running relay whatever its OpenAPI document allows, and much that it does not:
no answer is a 5xx, and none is other than the document says."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bellwire.cli.relay_client import RelayAccess
from tests.conftest import PATIENCE_S
from tests.docs.documents import OPENAPI
from tests.forking import ForkedRelay

if TYPE_CHECKING:  # every worker imports this module, and one runs it
    from schemathesis import APIOperation, Case

LABELS = [f"{method.upper()} {path}" for path, of in OPENAPI["paths"].items() for method in of]


@pytest.fixture(scope="module")
def operations() -> "dict[str, APIOperation[Any, Any, Any, Any]]":
    """What the document offers."""
    import schemathesis
    from schemathesis.core.result import Ok

    offered = {}
    for found in schemathesis.openapi.from_dict(OPENAPI).get_all_operations():
        assert isinstance(found, Ok), found
        offered[found.ok().label] = found.ok()
    assert sorted(offered) == sorted(LABELS)
    return offered


PEOPLE = ("alice", "bob", "cem")


@dataclass(frozen=True)
class Served:
    """A relay, an access token of bob's, and what is there to be asked about."""

    access: RelayAccess
    token: str
    http: httpx.Client
    session: requests.Session

    def make_spare_ones(self) -> None:
        """A device, a group and an API key, to be deleted."""
        device = {"identity": "spare", "channels": [{"kind": "mqtt"}]}
        self.http.put("/v1/devices/spare-1", json=device).raise_for_status()
        self.http.put("/v1/groups/spare", json={"members": ["spare"]}).raise_for_status()
        answer = self.http.post("/v1/keys", json={"name": "spare", "scopes": ["groups"]})
        assert answer.status_code in (201, 409), answer.text

    def call_sid(self, mode: str) -> str:
        """A call that rings for long."""
        body = {"from": "alice", "to": ["bob", "cem"], "mode": mode, "timeout": 600}
        answer = self.http.post("/v1/calls", json=body)
        assert answer.status_code == 201, answer.text
        sid: str = answer.json()["call_sid"]
        return sid


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    relay = ForkedRelay(
        tmp_path_factory.mktemp("relay") / "data",
        environment={"BELLWIRE_DEVICE_INVITES_PER_S": "1000"},  # each test calls the same device
    )
    with asyncio.Runner() as runner:
        runner.run(relay.start())
        access = relay.access
        credentials = {"Authorization": f"Bearer {access.api_key}"}
        with (
            httpx.Client(base_url=access.url, headers=credentials, timeout=PATIENCE_S) as http,
            requests.Session() as session,
        ):
            session.headers.update(credentials)
            for name in PEOPLE:
                device = {"identity": name, "channels": [{"kind": "websocket"}]}
                http.put(f"/v1/devices/{name}-1", json=device).raise_for_status()
            http.put("/v1/groups/all", json={"members": list(PEOPLE)}).raise_for_status()
            token = http.post("/v1/tokens", json={"identity": "bob"}).json()["token"]
            served = Served(access, token, http, session)
            served.make_spare_ones()
            yield served
        runner.run(relay.stop())


def members_of_body(label: str) -> set[str]:
    """The members that the JSON body of an operation may have."""
    method, path = label.split()
    body = OPENAPI["paths"][path][method.lower()].get("requestBody", {})
    schema = body.get("content", {}).get("application/json", {}).get("schema", {})
    names = {
        one["$ref"].rpartition("/")[2]
        for one in (schema, *schema.get("anyOf", ()))
        if "$ref" in one
    }
    return {
        member for name in names for member in OPENAPI["components"]["schemas"][name]["properties"]
    }


def meaningful(
    case: "Case[Any]", label: str, about: dict[str, str], who: str, to: list[str]
) -> "Case[Any]":
    """A case about a call, device or group that there is, by and for people that there are, who
    show what they have to show."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = about[name]
    for name in ("X-API-Key", "Authorization"):
        case.headers.pop(name, None)
    members = members_of_body(label)
    if members and case.media_type in (None, "application/json"):
        case.media_type = "application/json"
        known: dict[str, Any] = {
            "identity": who,
            "device_id": f"{who}-1",
            "from": who,
            "to": [one for one in to if one != who] or ["spare"],
            "custom_parameters": {"a": "b c"},
        }
        body = case.body if isinstance(case.body, dict) else {}
        case.body = body | {name: value for name, value in known.items() if name in members}
    return case


@pytest.mark.timeout(600)
@pytest.mark.parametrize("label", LABELS)
def test_relay_answers_as_its_openapi_document_says(
    served: Served,
    operations: "dict[str, APIOperation[Any, Any, Any, Any]]",
    label: str,
    full: bool,
) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    operation = operations[label]
    what_must_hold = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]
    sids = [served.call_sid("common"), served.call_sid("advanced")]

    @settings(
        max_examples=400 if full else 10,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)),
        makes_sense=st.sampled_from([True, True, False]),
        sid=st.sampled_from(sids),
        who=st.sampled_from(PEOPLE),
        to=st.lists(st.sampled_from(PEOPLE), min_size=1, unique=True),
        shown=st.sampled_from([served.access.api_key] * 3 + [served.token]),
    )
    def ask(
        case: "Case[Any]", makes_sense: bool, sid: str, who: str, to: list[str], shown: str
    ) -> None:
        if makes_sense:
            about = {"call_sid": sid, "device_id": "spare-1", "name": "spare"}
            if label.startswith("DELETE"):
                served.make_spare_ones()
            case = meaningful(case, label, about, who, to)
            case.headers["Authorization"] = f"Bearer {shown}"
        case.call_and_validate(
            base_url=served.access.url, session=served.session, checks=what_must_hold
        )

    ask()


def test_relay_serves_the_document_that_it_is_tested_by(served: Served) -> None:
    assert served.http.get("/openapi.json").json() == OPENAPI

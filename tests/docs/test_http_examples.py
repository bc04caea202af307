"""The curl examples of docs/http.md, sent to a real relay: what it answers is what the page shows."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx

from tests.conftest import register_station
from tests.docs.documents import ROOT, Block, blocks
from tests.forking import ForkedRelay

PAGE = ROOT / "docs/http.md"
_CHANGING = re.compile(r"_sid|_at|token|password|url|^key$|^client_id$")


def curl(line: str, variables: dict[str, str]) -> httpx.Request:
    """The request that a curl command sends."""
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    words = iter(shlex.split(line)[1:])
    method, url, body, headers = "", "", None, {}
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word in ("-d", "--data-binary"):
            body = next(words)
        elif word != "-s":
            assert not url, f"what is {word!r} in {line}?"
            url = word
    method = method or ("GET" if body is None else "POST")
    if body == "@invite.xml":
        (body,) = (block.text for block in blocks(PAGE) if block.kind == "xml")
    return httpx.Request(method, url, headers=headers, content=body)


def examples() -> Iterator[tuple[str, Any]]:
    """Each command, with the JSON document that follows its block, else None."""
    for block, following in pairwise([*blocks(PAGE), Block("", "", "")]):
        if block.kind != "console":
            continue
        lines = [line for line, _ in block.commands()]
        assert lines[-1].startswith("curl "), block.place
        yield from ((line, None) for line in lines[:-1])
        yield lines[-1], json.loads(following.text) if following.kind == "json" else None


def is_alike(shown: Any, answered: Any, name: str = "") -> bool:  # noqa: ANN401 - JSON
    """Whether an answer is what is shown: the same members, and the same values where they are not
    new at each time."""
    if isinstance(shown, dict) and isinstance(answered, dict):
        return shown.keys() == answered.keys() and all(
            is_alike(shown[key], answered[key], key) for key in shown
        )
    if isinstance(shown, list) and isinstance(answered, list):
        return len(shown) == len(answered) and all(map(is_alike, shown, answered))
    if isinstance(shown, str) and _CHANGING.search(name):
        return isinstance(answered, str)
    return bool(shown == answered)


async def test_relay_answers_the_curl_examples_as_the_page_shows(
    relay: ForkedRelay, http: httpx.AsyncClient
) -> None:
    await register_station(http, "desk-1", identity="desk")
    variables = {"RELAY": relay.access.url, "KEY": relay.access.api_key}
    sids: dict[str, str] = {}  # as the page shows it -> as it is here
    statuses = []
    async with httpx.AsyncClient() as plain:
        for line, shown in examples():
            if line.startswith("SID="):
                variables["SID"] = sids[line.removeprefix("SID=")]
                continue
            answer = await plain.send(curl(line, variables))
            statuses.append(answer.status_code)
            if shown is not None:
                assert is_alike(shown, answer.json()), f"{line}\n{answer.text}"
                sids[shown.get("call_sid")] = answer.json().get("call_sid")
    assert statuses == [
        *(201, 200),  # a token, revoked
        *(201, 200, 204),  # an API key
        *(201, 201),  # two calls
        *(
            200,
            200,
            200,
            200,
            200,
            200,
            200,
            200,
            409,
            200,
        ),  # following the first, and its deliveries
        *(201, 201, 204),  # devices
        *(201, 201),  # a group, and a call to it
        *(200, 200, 200, 200, 409),  # join, quit, invite, two messages
        *(200, 200, 204),  # feedback, end, and the group is removed
    ]


async def test_body_of_another_content_type_is_refused_as_the_page_says(
    relay: ForkedRelay,
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    headers = {"X-API-Key": relay.access.api_key}
    bodies = {"/v1/calls": '{"to": ["desk"]}', "/v1/tokens": '{"identity": "desk"}'}
    async with httpx.AsyncClient(base_url=relay.access.url, headers=headers) as plain:
        for path, body in bodies.items():
            answer = await plain.post(path, content=body, headers=form)
            assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-input")
            json_type = {"Content-Type": "application/json"}
            answer = await plain.post(path, content=body, headers=json_type)
            assert answer.status_code != 422, answer.text


def test_answer_that_differs_from_the_page_is_found() -> None:
    shown = {"state": "ringing", "call_sid": "CA1", "users": [{"identity": "desk"}]}
    assert is_alike(shown, {**shown, "call_sid": "CA2"})
    changes: list[dict[str, Any]] = [
        {"state": "open"},
        {"users": []},
        {"call_sid": None},
        {"new": 1},
    ]
    for change in changes:
        assert not is_alike(shown, {**shown, **change})

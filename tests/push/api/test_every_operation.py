"""Each operation is said once, and is there whichever way it is asked for: over HTTP, and by a device."""

import httpx
from fastapi.routing import APIRoute

from bellwire.push.api.app import build_app
from bellwire.push.calls.operations import COMMANDS
from bellwire.signaling.wire.operations import OPERATIONS, Who
from tests.push.support import assert_problem

HTTP_ALONE = {
    ("GET", f"/v1/calls/{{call_sid}}/{what}") for what in ("deliveries", "feedback", "insights")
}
"""What only backends ask for."""


def test_http_and_devices_have_the_same_operations() -> None:
    described = build_app().openapi()["paths"]
    for_users = {
        (method.upper(), path)
        for path, methods in described.items()
        for method, route in methods.items()
        if {"calls", "media"} & set(route["tags"])
    }
    said = {
        (operation.method, operation.path)
        for operation in OPERATIONS.values()
        if operation.path is not None
    }
    keys = ("GET", "/.well-known/jwks.json")
    assert for_users | {keys} == said | HTTP_ALONE
    without_http = {operation.name for operation in OPERATIONS.values() if operation.path is None}
    assert without_http == {"door_locked_out", "door_not_verified"}


def test_route_takes_and_answers_what_its_operation_says() -> None:
    routes = {
        (method, route.path): route
        for route in build_app().routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    on_calls = [each for each in OPERATIONS.values() if (each.path or "").startswith("/v1/calls")]
    assert len(on_calls) == 15
    for operation in on_calls:
        assert operation.path is not None
        route = routes[operation.method, operation.path]
        assert route.response_model is operation.answer, operation.name
        assert (route.body_field is None) == (operation.body is None), operation.name


def test_every_command_that_is_asked_for_can_be_made() -> None:
    asked_for = {each.command for each in OPERATIONS.values() if each.command is not None}
    assert asked_for == set(COMMANDS)


def test_only_a_device_reports_of_its_door() -> None:
    for operation in OPERATIONS.values():
        assert (operation.path is None) == (operation.who is Who.STATION), operation.name


async def test_a_defect_is_answered_with_its_code_and_tells_nobody_what_broke() -> None:
    app = build_app()

    @app.get("/v1/broken")
    async def broken() -> None:
        raise ZeroDivisionError("a secret")

    wire = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=wire, base_url="http://relay") as client:
        problem = assert_problem(await client.get("/v1/broken"), 500, "internal")
    assert problem["code"] == 31500
    assert "secret" not in str(problem)

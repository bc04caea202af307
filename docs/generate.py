"""Writes the parts of the documentation that the code knows itself. Run it as `script/docs`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; `PARTS` says how each is made,
`FILES` which files are made whole. A test fails where what stands there is not what is made here.
"""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bellwire.cli.fleet.command import schema_text
from bellwire.cli.main import app
from bellwire.config.agent.settings import default_panel
from bellwire.config.relay import ApnsApp, FcmApp, RelaySettings, WebhookTarget
from bellwire.push.api.app import build_app
from bellwire.push.devices.metrics import DEVICE_LABELS, DEVICE_METRICS
from bellwire.push.metrics import Metrics
from bellwire.push.problems import problem_of
from bellwire.signaling import errors, topics
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.calls.events import (
    BackendAnswerRefused,
    CallEvent,
    CallFeedback,
    CallInsight,
    DeviceChannelRemoved,
    DoorLockedOut,
    InviteNotDelivered,
)
from bellwire.signaling.calls.rules import TRANSITIONS
from bellwire.signaling.errors import OperationRefused, Refusal
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.tokens import SCOPE_MEANINGS, Scope
from bellwire.signaling.wire import answers, requests
from bellwire.signaling.wire import operations as wire
from docs import push_examples, python_tables
from docs.rooms import rooms
from docs.tables import inline, paragraphs, sections, sent, table, taken

ROOT = Path(__file__).resolve().parents[1]

_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_HEADER_PIN = {17: 11, 27: 13, 5: 29, 6: 31, 13: 33, 19: 35, 26: 37, 18: 12, 22: 15, 23: 16, 24: 18}
"""BCM number -> pin of the Pi's 40-pin header, for the pins of the default panel."""

_WHAT_TO_DO = {
    "invalid-input": "Mend the request; `errors`, where it is there, names each place.",
    "too-large": "Shorten what `detail` names; `limit` is in bytes.",
    "head-too-large": "Send fewer or shorter header fields; `limit` is in bytes.",
    "too-slow": "Send it again, whole: a head within 10 s, a body within 30 s.",
    "unauthenticated": "Show a good key or token; ask your backend for a new token.",
    "forbidden": "Use credentials of the right identity or device, or an API key with the scope that"
    " `detail` names.",
    "call-not-found": "Check the SID.",
    "nobody-to-call": "Register a device for the identity; `error_invitees` says what is missing.",
    "not-found": "Check the path, and the id in it.",
    "conflict": "Use a new `Idempotency-Key` for a new request.",
    "operation-refused": "Nothing was changed. Read `reason` and `state`, or the call, and stop trying; where"
    " `reason` is `not-main-device`, `join` first.",
    "too-many-requests": "Wait `Retry-After` seconds. Nothing was made.",
    "unavailable": "Try again after `Retry-After` seconds.",
    "call-rejected": "Nobody was rung. `reason` says whether it was rejected or busy.",
    "hung-up": "Nobody was rung: the backend wants no call.",
    "bad-gateway": "Look at the relay's log and mend the backend; try again then.",
    "gateway-timeout": "Try again; have the backend answer sooner, or raise `voice_url_timeout_s`.",
}
_WHAT_IT_MEANS = {"invalid-input": "A value is not what the field takes."}


def generated_files() -> dict[Path, str]:
    """Every file with something generated in it, as it should be."""
    files = {ROOT / path: make() for path, make in FILES.items()}
    for path in documents():
        files[path] = with_parts(files.get(path) or path.read_text())
    return files


def with_parts(text: str) -> str:
    """A document with its generated parts as they should be."""
    return _PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[3], text)


def documents() -> list[Path]:
    """The documents, wherever they stand."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Writes what has changed, and says what that was."""
    for path, text in generated_files().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"written: {path.relative_to(ROOT)}\n")


def transitions() -> str:
    """The rules: a row for each state, a column for each operation."""
    operations = list(dict.fromkeys(operation for operation, _ in TRANSITIONS))
    states = [state for state in UserState if state is not UserState.UNKNOWN]
    return table(
        ["state", *operations],
        (
            [state, *(TRANSITIONS.get((operation, state), "") for operation in operations)]
            for state in states
        ),
    )


def settings() -> str:
    """What a relay can be told."""
    return table(
        ["setting", "environment", "default", "what it is"],
        (
            [f"`{name}`", f"`BELLWIRE_{name.upper()}`", _default(field), _purpose(name, field)]
            for name, field in RelaySettings.model_fields.items()
        ),
    )


_PURPOSES = {
    "data": "where the relay keeps everything; under systemd the unit's state directory",
    "broker_username": "the relay's account at `broker`",
    "broker_password": "its password: in the environment or a file of mode 600, never a flag",
    "broker_ca_file": "the CA that signed the broker's certificate, where the system has it not",
    "issuer": "`iss` of the access tokens; a token of another issuer is refused",
    "max_body_bytes": "longer HTTP bodies are refused with 413",
    "idempotency_keep_s": "seconds that an `Idempotency-Key` is remembered",
    "log_level": "`debug`, `info`, `warning` or `error`",
    "log_format": "`console`, `json`, or `auto`: readable on a terminal, JSON elsewhere",
}


def _purpose(name: str, field: FieldInfo) -> str:
    return field.description or _PURPOSES[name]


def _default(field: FieldInfo) -> str:
    if field.default_factory is dict:
        return ""
    if field.default_factory is not None:
        return "`~/.local/share/bellwire`"
    if field.default in (None, ()) or isinstance(field.default, SecretStr | BaseModel):
        return ""
    if isinstance(field.default, tuple):
        return f"`{json.dumps(field.default)}`"
    return f"`{field.default}`"


def metrics() -> str:
    """What the relay counts."""
    return table(
        ["metric", "kind", "labels", "what it counts"],
        (
            [
                f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
                family.type,
                ", ".join(f"`{label}`" for label in _labels(collector)),
                family.documentation,
            ]
            for collector in _collectors()
            for family in collector.describe()
        ),
    )


def _collectors() -> list[Any]:
    return [value for value in vars(Metrics()).values() if hasattr(value, "describe")]


def _labels(collector: Any) -> tuple[str, ...]:  # noqa: ANN401 - prometheus-client has no common type
    labels: tuple[str, ...] = getattr(collector, "_labelnames", ())
    return labels


def routes() -> str:
    """Every route of the HTTP interface."""
    described = build_app().openapi()["paths"]
    return table(
        ["route", "answers", "what it does"],
        (
            [
                f"`{method.upper()} {path}`",
                " or ".join(status for status in sorted(route["responses"]) if status < "300"),
                inline(route["description"]),
            ]
            for path, methods in described.items()
            for method, route in methods.items()
        ),
    )


def scopes() -> str:
    """What each scope of an API key opens."""
    opened: dict[str, list[str]] = {scope: [] for scope in Scope}
    for path, methods in build_app().openapi()["paths"].items():
        for method, route in methods.items():
            ways = [scopes for way in route.get("security", ()) for scopes in way.values()]
            for scope in dict.fromkeys(itertools.chain.from_iterable(ways)):
                opened[scope].append(f"`{method.upper()} {path}`")
    opened[Scope.CALLS].append("`WS /v1/events`")
    return table(
        ["scope", "what it is for", "routes"],
        ([f"`{scope}`", SCOPE_MEANINGS[scope], ", ".join(opened[scope])] for scope in Scope),
    )


def device_metrics() -> str:
    """What the relay tells of each device."""
    return table(
        ["metric", "kind", "labels", "what it says"],
        (
            [f"`{name}`", "gauge", ", ".join(f"`{label}`" for label in DEVICE_LABELS), meaning]
            for name, meaning in DEVICE_METRICS.items()
        ),
    )


def problems() -> str:
    """Every kind of problem document, under a heading of its own."""
    found = []
    for kind in sorted(_refusals(), key=lambda kind: (_problem(kind).status, kind.slug)):
        problem = _problem(kind)
        code = f" · code {problem.code}" if problem.code else ""
        meaning = _WHAT_IT_MEANS.get(kind.slug) or (kind.__doc__ or "").split("\n\n")[0]
        found.append(
            f"### {kind.slug}\n\n`{problem.type}` · {problem.status}{code}\n\n"
            f"{inline(meaning)} **What to do:** {_WHAT_TO_DO[kind.slug]}\n"
        )
    return "\n".join(found)


def _refusals() -> list[type[Refusal]]:
    return [kind for kind in Refusal.__subclasses__() if kind.__module__ == errors.__name__]


def _problem(kind: type[Refusal]) -> Any:  # noqa: ANN401 - a problem document
    example = OperationRefused("accept", "Timeout", "") if kind is OperationRefused else kind("")
    return problem_of(example)


def error_codes() -> str:
    """Every code of a call's errors, and when it happens."""
    return table(
        ["code", "name", "when it happens in Bellwire"],
        (
            [f"[{kind.code}](#{kind.code})", f"`{kind.name}`", kind.happens]
            for kind in errors.ERROR_TABLE.values()
        ),
    )


def errors_in_full() -> str:
    """All that the error table says, under a heading for each code."""
    return "\n".join(
        f"### {kind.code}\n\n`{kind.name}`: {kind.description}\n\n{kind.explanation}.\n\n"
        f"- **When:** {kind.happens}\n"
        f"- **Causes:** {'; '.join(kind.causes)}.\n"
        f"- **What helps:** {'; '.join(kind.solutions)}.\n"
        for kind in errors.ERROR_TABLE.values()
    )


def rights() -> str:
    """What a device may do on which topic."""
    device = DeviceId("ID")
    return table(
        ["topic", "a device may"],
        [
            *([f"`{topic}`", "subscribe"] for topic in topics.readable_by(device)),
            *([f"`{topic}`", "publish"] for topic in topics.writable_by(device)),
        ],
    )


def operator_rights() -> str:
    """What an operator of the fleet may do on which topic."""
    return table(
        ["topic", "an operator may"],
        [
            *([f"`{topic}`", "subscribe"] for topic in topics.read_by_operators()),
            *([f"`{topic}`", "publish"] for topic in topics.written_by_operators()),
        ],
    )


def bodies() -> str:
    """The bodies of HTTP requests."""
    models = (
        wire.InviteRequest,
        wire.OperationRequest,
        wire.ReceivedRequest,
        wire.RejectRequest,
        wire.CancelRequest,
        wire.InviteMoreRequest,
        wire.MessageRequest,
        wire.FeedbackRequest,
        requests.GroupRequest,
        requests.DeviceRequest,
        requests.TokenRequest,
        requests.RevokeTokensRequest,
        requests.ApiKeyRequest,
        requests.RotateKeyRequest,
    )
    return sections((model.__name__, model, taken(model)) for model in models)


def replies() -> str:
    """The bodies of HTTP answers."""
    models = (
        answers.CallAnswer,
        answers.CallListAnswer,
        answers.MessageAnswer,
        answers.CallDeliveriesAnswer,
        answers.DeliveryAnswer,
        answers.GroupAnswer,
        answers.GroupListAnswer,
        answers.DeviceAnswer,
        answers.DeviceListAnswer,
        answers.TokenAnswer,
        answers.RevokedTokensAnswer,
        answers.ApiKeyAnswer,
        answers.NewApiKeyAnswer,
        answers.ApiKeyListAnswer,
        answers.IceServersAnswer,
        answers.IceServerAnswer,
        answers.KeySetAnswer,
    )
    return sections((model.__name__, model, sent(model, missing="or `null`")) for model in models)


def who_may() -> str:
    """Every operation of a call: what it is called over HTTP and by a device, and who may ask for it."""
    return table(
        ["over HTTP", "over MQTT and WebSocket", "who may", "what it does"],
        (
            [
                "devices alone"
                if operation.path is None
                else f"`{operation.method} {operation.path}`",
                f"`{operation.name}`",
                operation.who,
                inline(operation.meaning),
            ]
            for operation in wire.OPERATIONS.values()
        ),
    )


def operations() -> str:
    """The requests that a device may send over MQTT and WebSocket."""
    return sections(
        (operation.name, model, taken(model, {"operation"}))
        for model, operation in wire.OPERATIONS.items()
    )


def events() -> str:
    """The events, and the fields of each beside `event`, `id`, `call_sid` and `at`."""
    common = {"event", "id", "call_sid", "at"}
    return sections(
        (_tag(model, "event"), model, sent(model, common, missing="may be absent"))
        for model in _members(CallEvent)
    )


def device_events() -> str:
    """The events of a device that are of no call, beside `event`, `id` and `at`."""
    models = (DeviceChannelRemoved,)
    return sections(
        (_tag(model, "event"), model, sent(model, {"event", "id", "at"}, missing="may be absent"))
        for model in models
    )


def webhook_events() -> str:
    """The events that go to webhooks alone."""
    common = {"event", "id", "call_sid", "at"}
    models = (InviteNotDelivered, CallFeedback, CallInsight, DoorLockedOut, BackendAnswerRefused)
    return sections(
        (_tag(model, "event"), model, sent(model, common, missing="may be absent"))
        for model in models
    )


def _members(union: UnionType) -> tuple[type[BaseModel], ...]:
    return get_args(union)


def _tag(model: type[BaseModel], name: str) -> str:
    tag: str = get_args(model.model_fields[name].annotation)[0]
    return tag


def push_settings() -> str:
    """What a relay can be told of push apps and webhooks."""
    heads: dict[str, type[BaseModel]] = {
        '[apns."BUNDLE ID"]': ApnsApp,
        '[fcm."PACKAGE NAME"]': FcmApp,
        "[webhooks.NAME]": WebhookTarget,
    }
    return sections((f"`{head}`", model, taken(model)) for head, model in heads.items())


def wiring() -> str:
    """The pins of the panel that `bellwire devices add` writes."""
    purposes = {
        "hang_up": "push button to ground: rejects, cancels, hangs up",
        "ringer": "relay board's input, high while the bell sounds",
        "status_light": "LED through 330 ohms to ground",
    }
    return table(
        ["part", "GPIO (BCM)", "header pin", "wire it to"],
        (
            [
                f"`{part}`",
                str(pin),
                str(_HEADER_PIN[pin]),
                purposes.get(part, "push button to ground"),
            ]
            for part, pin in default_panel(["desk", "gate"]).pin_users()
        ),
    )


def command_line() -> str:
    """`docs/cli.md`: every command and its options, as `--help` says them."""
    group = typer.main.get_command(app)
    return "\n".join(
        [
            "# The command line\n\n<!-- This file is generated: run script/docs. -->\n",
            f"{inline(group.help)} {inline(group.epilog)}\n",
            "`python -m bellwire` is the same command. A default stands in square brackets.\n",
            *(_command(path, command) for path, command in commands("bellwire", group)),
        ]
    )


def commands(path: str, command: Any) -> Iterable[tuple[str, Any]]:  # noqa: ANN401 - Typer's own click
    """Every command that does something, with its path, as `("bellwire devices add", ...)`."""
    inner_commands = getattr(command, "commands", {})
    if not inner_commands or command.invoke_without_command:
        yield path, command
    for name, inner in inner_commands.items():
        yield from commands(f"{path} {name}", inner)


def _command(path: str, command: Any) -> str:  # noqa: ANN401 - Typer's own click
    with command.make_context(path, [], resilient_parsing=True) as context:
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        records = [parameter.get_help_record(context) for parameter in command.params]
    options = [[f"`{names}`", inline(purpose)] for names, purpose in filter(None, records)]
    parts = [f"## {path}\n", f"```text\n{usage}\n```\n", f"{paragraphs(command.help)}\n"]
    if command.epilog:
        parts.append(f"{inline(command.epilog)}\n")
    return "\n".join([*parts, table(["option", "what it is"], options)] if options else parts)


def openapi() -> str:
    """`docs/openapi.json`: the HTTP interface in OpenAPI."""
    return json.dumps(build_app().openapi(), indent=1, ensure_ascii=False) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "python-classes": python_tables.classes,
    "python-call-events": python_tables.call_events,
    "python-device-events": python_tables.device_events,
    "transitions": transitions,
    "settings": settings,
    "metrics": metrics,
    "device-metrics": device_metrics,
    "scopes": scopes,
    "routes": routes,
    "bodies": bodies,
    "replies": replies,
    "problems": problems,
    "error-codes": error_codes,
    "errors": errors_in_full,
    "rights": rights,
    "operator-rights": operator_rights,
    "operations": operations,
    "who-may": who_may,
    "webhook-events": webhook_events,
    "events": events,
    "device-events": device_events,
    "wiring": wiring,
    "push-settings": push_settings,
    "push-keys": push_examples.push_keys,
    "apns-call": push_examples.apns_call,
    "fcm-call": push_examples.fcm_call,
    "push-cancel": push_examples.push_cancel,
    "connect-token": push_examples.connect_token,
    "apns-reasons": lambda: push_examples.reasons("apns"),
    "fcm-reasons": lambda: push_examples.reasons("fcm"),
    "rooms": rooms,
}
FILES: dict[str, Callable[[], str]] = {
    "docs/cli.md": command_line,
    "docs/openapi.json": openapi,
    "docs/agent.schema.json": schema_text,
}


if __name__ == "__main__":
    main()

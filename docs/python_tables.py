"""The tables of docs/python.md: what the front door opens, by its docstrings."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from enum import Enum
from types import UnionType
from typing import Any, get_args, get_overloads, get_type_hints

from pydantic import BaseModel

import bellwire
from bellwire import AudioDevices, AudioStream, Call, CallError, Device
from docs.tables import inline, table

_CALL_EVENTS = {
    "accept": "it is open: accepted here, or answered by somebody who was called",
    "audio": "the others are heard from now on; the stream is `remote_stream`",
    "cancel": "it ended unanswered: given up, ignored, run out, or answered by another device",
    "digit": "somebody pressed a digit: who (None: not known, one of a call of more than five), and which",
    "disconnect": "it ended after it was answered, or a call to others failed",
    "error": "what went wrong; the call may go on",
    "messageReceived": "another party, or a server, says something",
    "messageSent": "the relay has what was said here",
    "mute": "whether the microphone is muted now",
    "reconnected": "what was lost is back",
    "reconnecting": "sound (53405) or relay (53001) is lost, and it is tried to get it back",
    "reject": "it was rejected here",
    "ringing": "it rings there; whether early media is allowed",
    "sample": "each second: how good the connection is",
    "volume": "about 20 times a second: how loud it is here and there, 0.0 to 1.0",
    "warning": "the connection is bad: which measure, and by what samples",
    "warning-cleared": "that measure is good again",
}
_DEVICE_EVENTS = {
    "error": (
        "its relay cannot be reached, each time that it tries: 31530 the broker's name is unknown, 20151"
        " it refuses the credentials, 31005 anything else"
    ),
    "incoming": "somebody calls",
    "registered": "it can reach its relay",
    "unregistered": "it has lost it; it goes on trying, and calls go on",
}
ATTRIBUTES = {
    Device: {
        "identity": "whose device it is: what others call",
        "call_waiting": "whether a second call rings while one is on, rather than be answered `busy`",
    },
    Call: {
        "direction": "`INCOMING` or `OUTGOING`",
        "from_": "who calls, as on the wire (`client:alice`); None where nobody in particular does",
        "to": "who is called",
        "expires_at": "when it stops ringing",
        "custom_parameters": "what the caller says with it",
        "early_media": "whether the called side may hear the caller before it answers",
        "caller_info": "what is known of the caller, once it is; `Device.on_caller` tells when",
        "uuid": "the application's own name for it, from `AcceptOptions`",
    },
    CallError: {
        "code": "Twilio's",
        "name": "its name",
        "message": "what is known of this one occurrence",
        "description, explanation, causes, solutions": "what such an error means, and what helps",
        "original_error": "what the library or system below said, if anything",
    },
}
OF_THE_AGENT = {
    Device: {"run", "screen", "use_sound"},
    Call: {"course", "only_invited", "record", "signalling", "spoken_for"},
    AudioDevices: {"named", "serve"},
    AudioStream: {"publish"},
}
"""What is public for the sake of the agent's own parts."""


def classes() -> str:
    """Each class of the front door, under a heading of its own."""
    return "\n".join(_class(name, getattr(bellwire, name)) for name in _in_order())


def _in_order() -> Iterable[str]:
    first = ["Device", "CallInvite", "Call", "AcceptOptions", "Message", "CallError"]
    return [*first, *sorted(set(bellwire.__all__) - set(first))]


def _class(name: str, kind: type) -> str:
    text, _, arguments = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    purpose = re.sub(r"\n\n.*", "", text, flags=re.DOTALL)
    if issubclass(kind, Enum):
        values = ", ".join(f"`{member.name}` (`{member.value}`)" for member in kind)
        return f"### {name}\n\n{_prose(purpose)} One of {values}.\n"
    rows = [*_fields(kind, arguments), *_attributes(kind), *_members(kind)]
    shown = table(["member", "what it is"], rows) if rows else ""
    return f"### {name}\n\n{_prose(purpose)}\n\n{shown}".rstrip("\n") + "\n"


def _fields(kind: type, arguments: str) -> Iterable[list[str]]:
    described = dict(re.findall(r"(?m)^    (\w+): (.+(?:\n {8}.+)*)", arguments))
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            yield [
                f"`{field.name}`",
                _prose(described[field.name]) if field.name in described else _code(field.type),
            ]
    elif issubclass(kind, BaseModel):
        hints = get_type_hints(kind)
        for name, info in kind.model_fields.items():
            yield [f"`{name}`", info.description or _code(hints[name])]


def _attributes(kind: type) -> Iterable[list[str]]:
    return [[f"`{name}`", meaning] for name, meaning in ATTRIBUTES.get(kind, {}).items()]


def _members(kind: type) -> Iterable[list[str]]:
    for name, member in vars(kind).items():
        if name.startswith("_") or name in OF_THE_AGENT.get(kind, ()):
            continue
        if isinstance(member, property):
            yield [f"`{name}`", _first(member.__doc__)]
        elif inspect.isfunction(member) or isinstance(member, classmethod):
            method = getattr(kind, name)
            wait = "await " if inspect.iscoroutinefunction(method) else ""
            wait = "async with " if isinstance(member, classmethod) else wait
            yield [f"`{wait}{name}({_parameters(method)})`", _first(method.__doc__)]


def _parameters(method: Callable[..., object]) -> str:
    parameters = inspect.signature(method).parameters.values()
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
    shown = inspect.Signature([one for one in bare if one.name not in ("self", "cls")])
    return re.sub(r"<(\w+\.\w+): '\w+'>", r"\1", str(shown)[1:-1])


def _first(text: str | None) -> str:
    """The first paragraph of a docstring, without the colon of what would follow."""
    paragraph = inspect.cleandoc(text or "").partition("\n\n")[0]
    return re.sub(r":$", ".", _prose(paragraph))


def _prose(text: str) -> str:
    """A docstring for those who have no copy of what it cites."""
    return re.sub(r" \((?:seed|RFC) [^)]*\)", "", inline(text))


def call_events() -> str:
    """What `Call.on` takes."""
    return _events(Call, _CALL_EVENTS)


def device_events() -> str:
    """What `Device.on` takes."""
    return _events(Device, _DEVICE_EVENTS)


def _events(kind: type[Call | Device], meanings: dict[str, str]) -> str:
    found: dict[str, str] = {}
    for overload in get_overloads(kind.on):
        hints = get_type_hints(overload)
        told, _ = get_args(hints["listener"])
        for event in get_args(hints["event"]):
            found[event] = ", ".join(_code(one) for one in told) or "nothing"
    return table(
        ["event", "the listener is given", "when"],
        ([f"`{event}`", found[event], meanings[event]] for event in sorted(found)),
    )


def _code(hint: Any) -> str:  # noqa: ANN401 - any annotation
    return f"`{_type(hint)}`"


def _type(hint: Any) -> str:  # noqa: ANN401 - any annotation
    if isinstance(hint, UnionType):
        return " | ".join(_type(one) for one in get_args(hint))
    if hint is type(None):
        return "None"
    named = getattr(hint, "__name__", str(hint))
    inner = ", ".join("..." if one is ... else _type(one) for one in get_args(hint))
    return f"{named}[{inner}]" if inner else named

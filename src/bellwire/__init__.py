"""Bellwire: rings intercoms, desk phones, mobiles and browsers, and connects the call.

This is the front door for a program of your own, and docs/python.md its guide. Each name is imported when it
is first asked for: so `import bellwire` costs nothing, and works with any extra or none.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bellwire.agent.calls.call import AcceptOptions, Call
    from bellwire.agent.calls.device import Device
    from bellwire.agent.calls.invite import CallInvite
    from bellwire.agent.calls.record import CallerInfo, CallStatus, Direction, Message
    from bellwire.agent.media.engine.interface import IceServer
    from bellwire.agent.media.sound import AudioDevices, AudioStream
    from bellwire.agent.quality.sample import Sample
    from bellwire.agent.quality.warnings import WarningData, WarningName
    from bellwire.signaling.calls.calls import Attestation, Mode, RejectStatus
    from bellwire.signaling.errors import CallError, InvalidInput
    from bellwire.signaling.wire.operations import FeedbackIssue, GroupReference

__all__ = [
    "AcceptOptions",
    "Attestation",
    "AudioDevices",
    "AudioStream",
    "Call",
    "CallError",
    "CallInvite",
    "CallStatus",
    "CallerInfo",
    "Device",
    "Direction",
    "FeedbackIssue",
    "GroupReference",
    "IceServer",
    "InvalidInput",
    "Message",
    "Mode",
    "RejectStatus",
    "Sample",
    "WarningData",
    "WarningName",
]

_DEFINED_IN = {
    "bellwire.agent.calls.call": ("AcceptOptions", "Call"),
    "bellwire.agent.calls.device": ("Device",),
    "bellwire.agent.calls.invite": ("CallInvite",),
    "bellwire.agent.calls.record": ("CallStatus", "CallerInfo", "Direction", "Message"),
    "bellwire.agent.media.engine.interface": ("IceServer",),
    "bellwire.agent.media.sound": ("AudioDevices", "AudioStream"),
    "bellwire.agent.quality.sample": ("Sample",),
    "bellwire.agent.quality.warnings": ("WarningData", "WarningName"),
    "bellwire.signaling.calls.calls": ("Attestation", "Mode", "RejectStatus"),
    "bellwire.signaling.errors": ("CallError", "InvalidInput"),
    "bellwire.signaling.wire.operations": ("FeedbackIssue", "GroupReference"),
}
_MODULE_OF = {name: module for module, names in _DEFINED_IN.items() for name in names}


def __getattr__(name: str) -> object:
    """A name of the front door (PEP 562).

    Raises:
        AttributeError: it is none.
        ImportError: a library that it needs is not installed; says which extra brings it.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_MODULE_OF[name])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", __name__):
            raise
        raise ImportError(
            f"{__name__}.{name} needs {missing}, which is not installed: pip install 'bellwire[agent]'",
            name=missing,
        ) from error
    found: object = getattr(module, name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

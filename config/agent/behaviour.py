"""How a device behaves: who is answered by itself, when it keeps quiet, how loud it rings, how often a
call button calls again, and who may open a door.

Callers are identities, written `alice`. Times of day are the clock's on the wall in `time_zone`; a range
that ends at or before its start runs over midnight, and its days are those on which it starts.
"""

from datetime import time
from itertools import pairwise
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from bellwire.config.agent.audio import Volume
from bellwire.config.agent.layer_reach import LOCAL_ONLY
from bellwire.signaling.identifiers import IdentityField, parse_identity

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_CODE_CHARACTERS = frozenset("0123456789*#")
CODE_MIN_LENGTH, CODE_MAX_LENGTH = 4, 16
LIST_MAX_LENGTH = 256
RANGES_MAX = 32
DOORS_MAX = 8


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # unknown, a bad path, a folder of zones
        raise ValueError(
            f"time zone {name[:40]!r} is not known: give an IANA name such as Europe/Berlin"
        ) from error
    return name


def _wall_clock(moment: time) -> time:
    if moment.tzinfo is not None:
        raise ValueError("a time of day has no offset of its own: `time_zone` says where it is")
    return moment


def _keypad_code(code: SecretStr) -> SecretStr:
    # Neither the code nor its length is repeated: what is refused may be nearly right. A code that is
    # too short, or that `*` is in, is let in: files of versions before hold such, and the station with
    # its file has to work. Its door stays shut (`shut_doors`).
    secret = code.get_secret_value()
    if not 1 <= len(secret) <= CODE_MAX_LENGTH or not _CODE_CHARACTERS.issuperset(secret):
        raise ValueError(f"a door code is {CODE_MIN_LENGTH} to {CODE_MAX_LENGTH} of 0-9 #")
    return code


TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]
TimeOfDay = Annotated[time, AfterValidator(_wall_clock)]
Caller = Annotated[IdentityField, AfterValidator(lambda text: str(parse_identity(text)))]
Callers = Annotated[tuple[Caller, ...], Field(max_length=LIST_MAX_LENGTH)]
DoorCode = Annotated[SecretStr, AfterValidator(_keypad_code)]
DoorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class Hours(_Settings):
    """A range of every week: from `start` up to, and without, `end`. Equal ones are 24 hours."""

    start: TimeOfDay
    end: TimeOfDay
    days: Annotated[tuple[Weekday, ...], Field(min_length=1, max_length=7)] = WEEKDAYS


class Quiet(_Settings):
    """What keeping quiet means: callers in `except_callers` ring as ever; the others ring without a
    sound (`silent`: the light shows it, and it can be answered), or are turned away (`reject`)."""

    treatment: Literal["silent", "reject"] = "silent"
    except_callers: Callers = ()


class DoNotDisturb(Quiet):
    """Quiet until it is switched off."""

    enabled: bool = False


class QuietHours(Hours, Quiet):
    """Quiet at these hours."""


class VolumeHours(Hours):
    """How loud it rings at these hours."""

    volume: Volume


class AutoAnswer(_Settings):
    """Who is answered by the device itself, and after how long."""

    callers: Callers = ()
    after_s: Annotated[float, Field(ge=0, le=60)] = 0
    verified_only: bool = True
    """Only where the relay vouches for the caller (attestation A): it opens the microphone."""


class Redial(_Settings):
    """How often a call button rings its people again when nobody answers."""

    times: Annotated[int, Field(ge=0, le=20)] = 0
    pause_s: Annotated[float, Field(ge=1, le=600)] = 5


class DoorRelease(_Settings):
    """How the other party of a call opens the door. Nobody may who is not in `callers`, and nobody at
    all where the code is one that cannot be used (`code_fault`)."""

    callers: Callers = ()
    verified_only: bool = True
    """Only where the relay vouches for who they are (attestation A)."""
    code: Annotated[DoorCode | None, LOCAL_ONLY] = None
    """What they press on their keypad; without one, digits do not open it."""
    by_message: bool = False
    """Whether a message of theirs opens it, without a code."""

    @property
    def code_fault(self) -> str | None:
        """What is wrong with its code; None where it has none, or one that can be used."""
        secret = "" if self.code is None else self.code.get_secret_value()
        if "*" in secret:
            return "its code holds `*`, which begins a code anew while it is typed"
        if 0 < len(secret) < CODE_MIN_LENGTH:
            return f"its code is shorter than {CODE_MIN_LENGTH} digits and soon guessed"
        return None


class BehaviourSettings(_Settings):
    """All of it. As it stands, a device rings for everybody, at `audio.ring_volume`, and opens nothing."""

    time_zone: TimeZone = "UTC"
    call_waiting: bool = False
    """Whether a second call rings during a call, instead of hearing `busy`."""
    do_not_disturb: DoNotDisturb = Field(default_factory=DoNotDisturb)
    quiet_hours: Annotated[tuple[QuietHours, ...], Field(max_length=RANGES_MAX)] = ()
    """The first range that a moment is in counts."""
    ring_volume_hours: Annotated[tuple[VolumeHours, ...], Field(max_length=RANGES_MAX)] = ()
    """The first range that a moment is in counts; outside all of them, `audio.ring_volume`."""
    auto_answer: AutoAnswer = Field(default_factory=AutoAnswer)
    hear_early_media: bool = False
    """Whether a caller who allows it is heard while it rings, before the call is answered."""
    redial: Redial = Field(default_factory=Redial)
    doors: Annotated[dict[DoorName, DoorRelease], Field(max_length=DOORS_MAX)] = Field(
        default_factory=dict
    )
    digit_timeout_s: Annotated[float, Field(ge=1, le=60)] = 5
    """How long a started door code waits for its next digit."""
    wrong_codes: Annotated[int, Field(ge=1, le=10)] = 3
    """How many wrong door codes one party may try before digits are ignored."""
    lockout_s: Annotated[float, Field(ge=1, le=86_400)] = 300
    """For how long they are ignored then, in this call and the next ones."""

    @property
    def shut_doors(self) -> dict[str, str]:
        """The doors that stay shut because of their code, by name: why, and after a colon what to do."""
        return {
            name: (
                f"door {name!r} stays shut, since {fault}: give it a code of {CODE_MIN_LENGTH} to "
                f"{CODE_MAX_LENGTH} of 0-9 # in the device's own file, and restart the agent"
            )
            for name, door in sorted(self.doors.items())
            if (fault := door.code_fault) is not None
        }

    @model_validator(mode="after")
    def _tell_codes_apart(self) -> Self:
        codes = sorted(
            (door.code.get_secret_value(), name)
            for name, door in self.doors.items()
            if door.code is not None
        )
        # Sorted, a code that another one begins with stands right before one such.
        for (code, name), (longer, other) in pairwise(codes):
            if longer.startswith(code):
                raise ValueError(
                    f"the code of door {other!r} begins with that of door {name!r}, which would open "
                    "first: give one another code"
                )
        return self

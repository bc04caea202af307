"""How two devices of a call agree on their sound (JSEP, RFC 8829): documents that travel as call
messages of type `media`, sent to one identity, in `content`.

An `offer` is answered by an `answer` with the same `session`; `candidate`s trickle both ways (RFC
8838), each with its session. A later offer of the same session restarts ICE; an offer with a new
session replaces the old. `device_id` says which device speaks, `to_device` which it speaks to: others
of the identity do not listen; absent, the main device.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from bellwire.signaling.identifiers import DeviceIdField

MEDIA_MESSAGE_TYPE = "media"
MEDIA_SDP_MAX_LENGTH = 3500
MESH_USERS = 5
"""Users of a call who exchange their sound directly, each with each. Of more, each sends it to a room
of the relay's, and hears all others from there."""

Session = Annotated[str, Field(min_length=1, max_length=64)]
Sdp = Annotated[str, Field(min_length=1, max_length=MEDIA_SDP_MAX_LENGTH)]


class _Media(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    session: Session
    device_id: DeviceIdField | None = None
    to_device: DeviceIdField | None = None


class MediaOffer(_Media):
    """One side's description of its sound. `early`: it is heard before the call is accepted."""

    kind: Literal["offer"] = "offer"
    sdp: Sdp
    early: bool = False


class MediaAnswer(_Media):
    """The other side's description."""

    kind: Literal["answer"] = "answer"
    sdp: Sdp


class MediaCandidate(_Media):
    """A way to reach the sender; an empty `candidate` says that there are no more."""

    kind: Literal["candidate"] = "candidate"
    candidate: Annotated[str, Field(max_length=1024)]
    sdp_mid: Annotated[str, Field(max_length=64)] | None = None
    sdp_m_line_index: Annotated[int, Field(ge=0, le=16)] | None = None


class MediaFailed(_Media):
    """The sender cannot go on with this session; `code` is Twilio's (53400 to 53405). It leaves the
    call, or, `without_sound`, stays in it as it is."""

    kind: Literal["failed"] = "failed"
    code: int
    without_sound: bool = False
    detail: Annotated[str, Field(max_length=512)] = ""


class MediaRoom(_Media):
    """The sender's sound goes to the call's room: who is there too needs no session with it."""

    kind: Literal["room"] = "room"


MediaDocument = MediaOffer | MediaAnswer | MediaCandidate | MediaFailed | MediaRoom
_DOCUMENT: TypeAdapter[MediaDocument] = TypeAdapter(
    Annotated[MediaDocument, Field(discriminator="kind")]
)


def parse_media(content: JsonValue) -> MediaDocument:
    """The document in a message's content.

    Raises:
        pydantic.ValidationError: it is none of this version.
    """
    return _DOCUMENT.validate_python(content)

"""TwiML, as far as it rings somebody: `<Response><Dial><Client>...`, and from a backend that is asked
`<Reject>` and `<Hangup>` too. All else, such as what needs a media server, is refused by name.

Parsed with expat alone, refusing any DOCTYPE: without one there are no entities to expand and
nothing external to fetch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.calls.dials import Callback, CallbackMethod, LegEvent
from bellwire.signaling.errors import InvalidInput, TooLarge
from bellwire.signaling.identifiers import Identity, parse_identity
from bellwire.signaling.twi_params import unique_parameters

MAX_BYTES = 64 * 1024
"""Twilio's own limit of a TwiML document."""

DEFAULT_TIMEOUT_S = 30
"""How long a `<Dial>` rings that does not say, as Twilio's."""

LONGEST_CALL_S = 24 * 3600
"""The highest `timeLimit`, as Twilio's."""

URL_MAX_LENGTH = 2048

_MAX_DEPTH = 8
_ENCODINGS = {"utf-8", "utf-16", "us-ascii", "iso-8859-1"}
_DIAL_ATTRIBUTES = {"callerId", "timeout", "answerOnBridge", "timeLimit", "action", "method"}
_CLIENT_ATTRIBUTES = {"statusCallback", "statusCallbackEvent", "statusCallbackMethod"}
_NEEDS_MEDIA = frozenset(
    {"Say", "Play", "Record", "Gather", "Pause", "Conference", "Enqueue", "Connect", "Start"}
)
_RECORDS = {"record", "recordingStatusCallback", "recordingTrack", "trim", "hangupOnStar", "url"}


@dataclass(frozen=True, slots=True)
class TwimlClient:
    """One `<Client>` of a `<Dial>`: whom to ring, and whom to tell how that goes."""

    identity: Identity
    custom_parameters: dict[str, str] = field(default_factory=dict)
    status_callback: Callback | None = None
    events: tuple[LegEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class TwimlDial:
    """Whom a TwiML document has rung. `timeout_s` is None where the document is silent. `answer_on_bridge`
    changes nothing: a caller hears ringing until somebody answers, either way."""

    clients: tuple[TwimlClient, ...]
    caller: Identity | None = None
    timeout_s: int | None = None
    answer_on_bridge: bool = False
    time_limit_s: int | None = None
    action: Callback | None = None

    @property
    def asks_backend(self) -> bool:
        """Whether a backend is to be told how it goes."""
        return self.action is not None or any(c.status_callback for c in self.clients)


@dataclass(frozen=True, slots=True)
class TwimlReject:
    """A backend refuses the call."""

    reason: RejectStatus


@dataclass(frozen=True, slots=True)
class TwimlHangup:
    """A backend ends the call before it has begun: by `<Hangup>`, or a `<Response>` that asks for nothing."""


TwimlAnswer = TwimlDial | TwimlReject | TwimlHangup


def parse_twiml(document: bytes, base_url: str | None = None) -> TwimlDial:
    """The call that a TwiML document asks for. URLs in it are relative to `base_url`, where there is one.

    Raises:
        TooLarge: the document is over 64 KiB.
        InvalidInput: it is not well-formed, has a DOCTYPE, or holds a verb, noun or attribute
            other than those above, named in the error.
    """
    response = _response(document)
    for verb in response:
        if verb.tag != "Dial":
            raise _not_supported(verb, "only <Dial> is")
    if len(response) != 1:
        raise InvalidInput(f"TwiML must hold one <Dial>, not {len(response)}")
    return _dial(response[0], base_url)


def parse_answer(document: bytes, base_url: str) -> TwimlAnswer:
    """What a backend answers that was asked whom to ring. After a `<Dial>` a `<Hangup/>` may stand, as
    that is what comes after it anyway.

    Raises:
        TooLarge, InvalidInput: as `parse_twiml`.
    """
    response = _response(document)
    first, *others = [*response] or [None]
    if first is None:
        return TwimlHangup()
    for verb in others:
        if verb.tag != "Hangup":
            raise _not_supported(verb, f"only <Hangup> is, after <{first.tag}>")
    match first.tag:
        case "Dial":
            return _dial(first, base_url)
        case "Reject":
            return _reject(first)
        case "Hangup":
            _refuse_content(first)
            return TwimlHangup()
    raise _not_supported(first, "only <Dial>, <Reject> and <Hangup> are")


def check_nothing_more(document: bytes) -> None:
    """Lets a backend's answer pass that asks for nothing more to be done with a call that is over: an empty
    one, a `<Response>` without verbs, `<Hangup/>`.

    Raises:
        TooLarge, InvalidInput: it asks for more, or is no TwiML.
    """
    if not document.strip():
        return
    for verb in _response(document):
        if verb.tag != "Hangup":
            raise _not_supported(verb, "once a call is over, only <Hangup> is")
        _refuse_content(verb)


def _response(document: bytes) -> Element:
    response = _parse_xml(document)
    if response.tag != "Response":
        raise InvalidInput(f"TwiML must be a <Response>, not <{response.tag[:80]}>")
    _refuse_other_attributes(response, set())
    _refuse_text(response)
    return response


def _not_supported(verb: Element, otherwise: str) -> InvalidInput:
    why = " (it needs a media server)" if verb.tag in _NEEDS_MEDIA else ""
    return InvalidInput(f"the TwiML verb <{verb.tag[:80]}> is not supported{why}: {otherwise}")


def _reject(verb: Element) -> TwimlReject:
    _refuse_content(verb, {"reason"})
    reason = verb.get("reason", RejectStatus.REJECTED)
    if reason not in (RejectStatus.REJECTED, RejectStatus.BUSY):
        raise InvalidInput(f"<Reject reason> must be rejected or busy, not {reason[:20]!r}")
    return TwimlReject(RejectStatus(reason))


def _refuse_content(verb: Element, attributes: set[str] | None = None) -> None:
    _refuse_other_attributes(verb, attributes or set())
    _refuse_text(verb)
    for inner in verb:
        raise InvalidInput(f"<{verb.tag}> must not hold <{inner.tag[:80]}>")


def _dial(dial: Element, base_url: str | None) -> TwimlDial:
    _refuse_other_attributes(dial, _DIAL_ATTRIBUTES)
    _refuse_text(dial)
    for noun in dial:
        if noun.tag != "Client":
            raise InvalidInput(f"<Dial> may hold only <Client>, not <{noun.tag[:80]}>")
    if not len(dial):
        raise InvalidInput("<Dial> needs at least one <Client>")
    caller_id = dial.get("callerId")
    return TwimlDial(
        clients=tuple(_client(client, base_url) for client in dial),
        caller=parse_identity(caller_id) if caller_id else None,
        timeout_s=_seconds("timeout", dial.get("timeout"), 600),
        answer_on_bridge=_boolean("answerOnBridge", dial.get("answerOnBridge", "false")),
        time_limit_s=_seconds("timeLimit", dial.get("timeLimit"), LONGEST_CALL_S),
        action=_callback(dial, "action", "method", base_url),
    )


def _client(client: Element, base_url: str | None) -> TwimlClient:
    _refuse_other_attributes(client, _CLIENT_ATTRIBUTES)
    children = list(client)
    identities = [child for child in children if child.tag == "Identity"]
    parameters = [child for child in children if child.tag == "Parameter"]
    for child in children:
        if child.tag not in ("Identity", "Parameter"):
            raise InvalidInput(f"<Client> may hold <Identity> and <Parameter>, not <{child.tag}>")
        if len(child):
            raise InvalidInput(f"<{child.tag}> must not hold other elements")
    if len(identities) > 1:
        raise InvalidInput("<Client> must hold one <Identity>")
    if identities:
        _refuse_text(client)
        _refuse_other_attributes(identities[0], set())
    text = identities[0].text if identities else _text_before(client, children)
    callback = _callback(client, "statusCallback", "statusCallbackMethod", base_url)
    return TwimlClient(
        parse_identity((text or "").strip()),
        unique_parameters(_parameters(parameters)),
        callback,
        () if callback is None else _events(client.get("statusCallbackEvent")),
    )


def _text_before(client: Element, children: list[Element]) -> str:
    """The short form `<Client>bob</Client>`: the identity stands before any <Parameter>."""
    if any((child.tail or "").strip() for child in children):
        raise InvalidInput("<Client> must not hold text between its elements")
    return client.text or ""


def _parameters(elements: list[Element]) -> Iterator[tuple[str, str]]:
    for element in elements:
        _refuse_other_attributes(element, {"name", "value"})
        _refuse_text(element)
        name, value = element.get("name"), element.get("value")
        if name is None or value is None:
            raise InvalidInput("<Parameter> needs the attributes name and value")
        yield name, value


def _seconds(name: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= most):
        raise InvalidInput(f"<Dial {name}> must be 1 to {most} seconds, not {text[:20]!r}")
    return int(text)


def _callback(
    element: Element, attribute: str, method_attribute: str, base_url: str | None
) -> Callback | None:
    """The request that an attribute asks for, None where it is absent or empty."""
    method = element.get(method_attribute, CallbackMethod.POST)
    if method not in (CallbackMethod.POST, CallbackMethod.GET):
        raise InvalidInput(f"{method_attribute} must be POST or GET, not {method[:20]!r}")
    url = element.get(attribute)
    if not url:
        return None
    return Callback(_absolute(attribute, url.strip(), base_url), CallbackMethod(method))


def _absolute(attribute: str, url: str, base_url: str | None) -> str:
    try:
        whole = urljoin(base_url or "", url)
        parts = urlsplit(whole)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_url = False
    if not is_url:
        relative = " (the relay has no voice_url that it could be relative to)"
        raise InvalidInput(
            f"{attribute} must be an http(s) URL, not {url[:80]!r}{'' if base_url else relative}"
        )
    if len(whole) > URL_MAX_LENGTH:
        raise InvalidInput(f"{attribute} must be at most {URL_MAX_LENGTH} characters")
    return whole


def _events(text: str | None) -> tuple[LegEvent, ...]:
    """What a `<Client>` is to be told of: its end, where it does not say, as Twilio does."""
    named = (text or LegEvent.COMPLETED).split()
    for name in named:
        if name not in set(LegEvent):
            raise InvalidInput(
                f"statusCallbackEvent may hold {', '.join(LegEvent)}, not {name[:40]!r}"
            )
    return tuple(event for event in LegEvent if event in named)


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise InvalidInput(f"{name} must be true or false, not {text[:20]!r}")
    return text == "true"


def _refuse_other_attributes(element: Element, allowed: set[str]) -> None:
    for attribute in sorted(set(element.keys()) - allowed):
        raise InvalidInput(
            f"<{element.tag[:80]}> does not take the attribute {attribute[:80]!r}"
            + (" (it needs a media server)" if attribute in _RECORDS else "")
            + (" (the relay pushes by itself)" if attribute == "clientNotificationUrl" else "")
        )


def _refuse_text(element: Element) -> None:
    if "".join([element.text or "", *(child.tail or "" for child in element)]).strip():
        raise InvalidInput(f"<{element.tag}> must not hold text beside its elements")


def _parse_xml(document: bytes) -> Element:
    if len(document) > MAX_BYTES:
        raise TooLarge(f"TwiML of {len(document)} bytes is over the limit of {MAX_BYTES}")
    builder = TreeBuilder()
    parser = ParserCreate()
    depth = 0

    def refuse_doctype(*_: object) -> None:
        raise InvalidInput("TwiML must not have a DOCTYPE")

    def check_encoding(_version: str, encoding: str | None, _standalone: int) -> None:
        # Any other name makes Python run a codec of that name.
        if (encoding or "utf-8").lower() not in _ENCODINGS:
            raise InvalidInput(f"TwiML must be in UTF-8, not {(encoding or '')[:20]!r}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise InvalidInput(f"TwiML is nested more than {_MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.XmlDeclHandler = check_encoding
    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(document, True)
    except (ExpatError, ValueError, LookupError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"TwiML is not well-formed XML: {error}") from error
    return builder.close()

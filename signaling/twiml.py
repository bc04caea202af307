"""TwiML as a call invite: `<Response><Dial><Client>...`, and nothing else of TwiML.

Parsed with expat alone, refusing any DOCTYPE: without one there are no entities to expand and
nothing external to fetch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from bellwire.signaling.errors import InvalidInput, TooLarge
from bellwire.signaling.identifiers import Identity, parse_identity
from bellwire.signaling.twi_params import unique_parameters

MAX_BYTES = 64 * 1024
"""Twilio's own limit of a TwiML document."""

_MAX_DEPTH = 8
_ENCODINGS = {"utf-8", "utf-16", "us-ascii", "iso-8859-1"}
_DIAL_ATTRIBUTES = {"callerId", "timeout", "answerOnBridge"}


@dataclass(frozen=True, slots=True)
class TwimlClient:
    """One `<Client>` of a `<Dial>`."""

    identity: Identity
    custom_parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TwimlDial:
    """What a TwiML document asks for. `timeout_s` is None where the document is silent."""

    clients: tuple[TwimlClient, ...]
    caller: Identity | None = None
    timeout_s: int | None = None
    answer_on_bridge: bool = False


def parse_twiml(document: bytes) -> TwimlDial:
    """The call that a TwiML document asks for.

    Raises:
        TooLarge: the document is over 64 KiB.
        InvalidInput: it is not well-formed, has a DOCTYPE, or holds a verb, noun or attribute
            other than those above, named in the error.
    """
    response = _parse_xml(document)
    if response.tag != "Response":
        raise InvalidInput(f"TwiML must be a <Response>, not <{response.tag}>")
    _refuse_other_attributes(response, set())
    _refuse_text(response)
    for verb in response:
        if verb.tag != "Dial":
            raise InvalidInput(f"the TwiML verb <{verb.tag}> is not supported: only <Dial> is")
    if len(response) != 1:
        raise InvalidInput(f"TwiML must hold one <Dial>, not {len(response)}")
    return _dial(response[0])


def _dial(dial: Element) -> TwimlDial:
    _refuse_other_attributes(dial, _DIAL_ATTRIBUTES)
    _refuse_text(dial)
    for noun in dial:
        if noun.tag != "Client":
            raise InvalidInput(f"<Dial> may hold only <Client>, not <{noun.tag}>")
    if not len(dial):
        raise InvalidInput("<Dial> needs at least one <Client>")
    caller_id = dial.get("callerId")
    return TwimlDial(
        clients=tuple(_client(client) for client in dial),
        caller=parse_identity(caller_id) if caller_id else None,
        timeout_s=_timeout(dial.get("timeout")),
        answer_on_bridge=_boolean("answerOnBridge", dial.get("answerOnBridge", "false")),
    )


def _client(client: Element) -> TwimlClient:
    _refuse_other_attributes(client, set())
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
    return TwimlClient(
        parse_identity((text or "").strip()), unique_parameters(_parameters(parameters))
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


def _timeout(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 600):
        raise InvalidInput(f"<Dial timeout> must be 1 to 600 seconds, not {text[:20]!r}")
    return int(text)


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise InvalidInput(f"{name} must be true or false, not {text[:20]!r}")
    return text == "true"


def _refuse_other_attributes(element: Element, allowed: set[str]) -> None:
    for attribute in set(element.keys()) - allowed:
        raise InvalidInput(f"<{element.tag}> does not take the attribute {attribute!r}")


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

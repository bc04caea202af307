"""What we read of the other side's description (SDP, RFC 8866): which of our codecs it speaks.

Not a parser: WebRTC is the judge of a description. This says only which error a refusal would be.
"""

import re
from collections.abc import Iterator

OUR_CODECS = {("opus", 48_000): "opus", ("pcmu", 8_000): "pcmu"}
"""RFC 7874's two obligatory codecs that the world's phones and browsers share."""

_STATIC_PCMU = "0"
"""PCMU's payload type needs no rtpmap (RFC 3551, section 6)."""

_AUDIO = re.compile(r"^m=audio (\d+) \S+((?: \d+)*)\r?$", re.MULTILINE)
_RTPMAP = re.compile(r"^a=rtpmap:(\d+) ([\w.-]+)/(\d+)", re.MULTILINE)
_UFRAG = re.compile(r"^a=ice-ufrag:(\S+)", re.MULTILINE)
_AUDIO_ATTRIBUTES = re.compile(r"^m=audio [^\r\n]*\r\n(?:[ic]=[^\r\n]*\r\n)*", re.MULTILINE)
_CANDIDATE_UFRAG = re.compile(r" ufrag (\S+)")


def spoken_codecs(sdp: str) -> tuple[str, ...]:
    """Our codecs in the first audio section, by its preference; none where it is rejected (port 0).

    Raises:
        ValueError: there is no audio section.
    """
    audio = _AUDIO.search(sdp)
    if audio is None:
        raise ValueError("the description has no audio section (a line `m=audio ...`)")
    if audio[1] == "0":
        return ()
    section = sdp[audio.start() :].partition("\nm=")[0]
    names = {_STATIC_PCMU: OUR_CODECS["pcmu", 8_000]}
    for payload_type, name, clock_rate in _RTPMAP.findall(section):
        names[payload_type] = OUR_CODECS.get((name.lower(), int(clock_rate[:6])), "")
    return tuple(dict.fromkeys(_known(names, audio[2].split())))


def _known(names: dict[str, str], payload_types: list[str]) -> Iterator[str]:
    for payload_type in payload_types:
        if name := names.get(payload_type):
            yield name


def asking_for_short_packets(sdp: str) -> str:
    """The description with `a=ptime:10` (RFC 8866, section 6.4) in its audio section: a packet of 10 ms
    is sent 10 ms earlier than the usual one of 20, and waits less at its end. It costs 50 headers more
    a second, some 26 kbit/s."""
    return _AUDIO_ATTRIBUTES.sub(r"\g<0>a=ptime:10\r\n", sdp, count=1)


def is_of(candidate: str, sdp: str) -> bool:
    """Whether a candidate belongs to this description, and not to one that is still to come: an ICE
    restart changes the ufrag (RFC 8839, section 5.4), and the candidate may overtake its offer."""
    said = _CANDIDATE_UFRAG.search(candidate)
    return said is None or said[1] in _UFRAG.findall(sdp)

"""What a description says of the codecs it speaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.agent.media.engine.sdp import asking_for_short_packets, is_of, spoken_codecs

OFFER = (
    "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF {formats}\r\na=ice-ufrag:abcd\r\n"
    "a=rtpmap:111 OPUS/48000/2\r\na=rtpmap:9 G722/8000\r\na=rtpmap:96 pcmu/8000\r\n"
    "a=rtpmap:97 opus/16000\r\nm=video 9 UDP/TLS/RTP/SAVPF 98\r\na=rtpmap:98 opus/48000/2\r\n"
)


@pytest.mark.parametrize(
    ("formats", "codecs"),
    [
        ("111 0", ("opus", "pcmu")),
        ("0 111", ("pcmu", "opus")),
        ("9 8 0", ("pcmu",)),
        ("96 0", ("pcmu",)),
        ("9 8", ()),
        ("97", ()),
        ("98", ()),
        ("", ()),
    ],
)
def test_codecs_are_ours_in_the_order_of_the_audio_section(
    formats: str, codecs: tuple[str, ...]
) -> None:
    assert spoken_codecs(OFFER.format(formats=formats).replace("SAVPF \r", "SAVPF\r")) == codecs


def test_a_rejected_section_speaks_nothing() -> None:
    assert spoken_codecs(OFFER.format(formats="111").replace("audio 9", "audio 0")) == ()


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for sdp in (text, OFFER.format(formats="111") + text, text + OFFER.format(formats="0")):
        try:
            assert set(spoken_codecs(sdp)) <= {"opus", "pcmu"}
        except ValueError as error:
            assert "m=audio" in str(error)


def test_a_candidate_belongs_to_the_description_with_its_ufrag() -> None:
    sdp = OFFER.format(formats="0")
    assert is_of("candidate:1 1 udp 1 10.0.0.1 9 typ host generation 0 ufrag abcd", sdp)
    assert is_of("candidate:1 1 udp 1 10.0.0.1 9 typ host", sdp)
    assert not is_of("candidate:1 1 udp 1 10.0.0.1 9 typ host ufrag abc", sdp)


def test_short_packets_are_asked_for_once_in_the_audio_section() -> None:
    sdp = OFFER.format(formats="111").replace("a=ice-ufrag", "c=IN IP4 0.0.0.0\r\na=ice-ufrag")
    asking = asking_for_short_packets(sdp)
    assert asking.replace("a=ptime:10\r\n", "", 1) == sdp
    assert "c=IN IP4 0.0.0.0\r\na=ptime:10\r\na=ice-ufrag" in asking

"""What two devices say to each other to agree on their sound, without any sound."""

import pytest

from bellwire.agent.calls.call import read_token, write_token
from bellwire.agent.media.early_media import allows_early_media, with_early_media
from bellwire.agent.media.engine.interface import IceCandidate
from bellwire.agent.media.negotiation import with_candidates
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import CallSid
from bellwire.signaling.wire.media import MEDIA_SDP_MAX_LENGTH

SDP = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
HOST = IceCandidate("candidate:1 1 udp 2 10.0.0.7 5000 typ host", "0", 0)
LAST = IceCandidate("")
SID = CallSid("CA" + "0" * 32)


def test_candidates_found_in_time_travel_inside_the_description() -> None:
    sdp, left = with_candidates(SDP, [HOST, LAST])
    assert sdp == f"{SDP}a={HOST.candidate}\r\na=end-of-candidates\r\n"
    assert left == ()


def test_a_candidate_that_the_description_holds_already_is_not_repeated() -> None:
    once, _ = with_candidates(SDP, [HOST])
    assert with_candidates(once, [HOST]) == (once, ())


def test_candidates_that_do_not_fit_trickle_in_their_order() -> None:
    long = SDP + "a=x\r\n" * ((MEDIA_SDP_MAX_LENGTH - len(SDP)) // 5)
    assert with_candidates(long, [HOST, LAST]) == (long, (HOST, LAST))


def test_the_leave_for_early_media_stands_beside_the_callers_own_data() -> None:
    assert allows_early_media(with_early_media(""))
    assert allows_early_media(with_early_media('{"floor": 2}'))
    assert not any(map(allows_early_media, ("", "[]", "early_media", '{"early_media": "yes"}')))
    with pytest.raises(InvalidInput):
        with_early_media("free text")


def test_a_connect_token_names_its_call() -> None:
    assert read_token(write_token(SID, {"door": "é"})) == (SID, {"door": "é"})


@pytest.mark.parametrize("token", ["", "é", "e30=", "bnVsbA==", write_token(CallSid("CA1"), {})])
def test_what_is_no_connect_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        read_token(token)

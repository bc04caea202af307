"""docs/seeds.md holds every word of the four seeds, and what it says of each is there."""

import re

import pytest

from tests.docs.documents import ROOT

PAGE = (ROOT / "docs" / "seeds.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("| ---", "| the seed"))
]

WORDS = {
    "TVOCallInvite": """
        from to callSid callInviteReceived: customParameters acceptWithDelegate:
        acceptWithOptions:delegate: reject init uuid
        call:didFailToConnectWithError callDidStartRinging callDidConnect call:didDisconnectWithError
        accepted-by-local rejected-by-local error codec <Parameter>
        localizedDescription localizedFailureReason""",
    "Errors": """
        20151 31005 31008 31009 31201 31403 31408 31481 31487 31500 31502 31503 31504 31530 31600 31604
        53001 53400 53401 53402 53403 53404 53405""",
    "ZEGO's call invitation": """
        Inviting Accepted Rejected Canceled Received NotYetReceived Timeout Quit Unknown
        callInviteWithInvitees callCancelWithInvitees callAcceptWithCallID callRejectWithCallID
        callingInviteWithInvitees callQuit callEnd callJoin queryCallInvitationListWithConfig
        callInvitationCreated callInvitationReceived callInvitationTimeout callInvitationCancelled
        callInvitationEnded callUserStateChanged timeout pushConfig mode enableNotReceivedCheck
        extendedData errorInvitees nextFlag callID callUserList userID""",
    "CometChat's ringing": """
        initiateCall receiverID receiverType callType acceptCall rejectCall("rejected")
        rejectCall("cancelled") rejectCall("busy") onIncomingCallReceived sessionID startCall startSession""",
    "Twilio.Call": """
        accept(acceptOptions) acceptOptions.rtcConfiguration acceptOptions.rtcConstraints disconnect()
        getLocalStream() getRemoteStream() ignore() isMuted() mute(shouldMute postFeedback(score reject()
        sendDigits(digits) sendMessage({content status() accept audio cancel disconnect error
        messageReceived messageSent mute reconnected reconnecting reject ringing sample volume warning
        warning-cleared callerInfo isVerified customParameters parameters codec connectToken direction
        causes code description explanation message name originalError solutions content contentType
        messageType voiceEventSid values samples threshold closed connecting open pending dropped-call
        audio-latency one-way-audio choppy-audio noisy-call echo EventEmitter hasEarlyMedia
        audioInputLevel audioOutputLevel bytesReceived bytesSent codecName jitter mos packetsLost
        packetsLostFraction packetsReceived packetsSent rtt timestamp totals""",
}
"""What each seed names: properties, methods, callbacks, events, states, errors."""


def section(title: str) -> list[list[str]]:
    """The rows under a heading."""
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [row for row in ROWS if f"| {' | '.join(row)} |" in text]


@pytest.mark.parametrize("seed", WORDS)
def test_every_word_of_a_seed_has_its_row(seed: str) -> None:
    named = " ".join(row[0] for row in section(seed))
    words = set(re.split(r"[\s`,;]+", named)) | set(named.replace("`", " ").split())
    bare = {word.rstrip(":,)") for word in words} | {word.lstrip("(") for word in words} | words
    missing = [
        word
        for word in WORDS[seed].split()
        if word not in bare
        and f"`{word}" not in named
        and not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", named)
    ]
    assert not missing


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_is_documented_and_played(row: list[str]) -> None:
    _, here, documented, played = row
    assert here
    assert re.fullmatch(r"\[[^\]]+\]\([\w-]+\.md(#[\w-]+)?\)", documented), documented
    tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", played)
    assert tests, played
    for path, name in tests:
        assert re.search(rf"\bdef {name}\(", (ROOT / path).read_text()), (path, name)

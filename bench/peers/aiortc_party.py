"""One aiortc peer in a process of its own, on the default sound device through PyAudio: what an agent
on aiortc would do at least. Reads and writes one session description, as JSON lines."""

import asyncio
import json
import sys
from fractions import Fraction

import numpy as np
import pyaudio
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame
from av.audio.resampler import AudioResampler

_RATE_HZ = 48_000
_FRAME = 960


class Microphone(MediaStreamTrack):
    """The sound card's input, 20 ms a frame."""

    kind = "audio"

    def __init__(self, stream: pyaudio.Stream) -> None:
        super().__init__()
        self._stream = stream
        self._at = 0

    async def recv(self) -> AudioFrame:
        """The next frame."""
        data = await asyncio.to_thread(self._stream.read, _FRAME, False)
        frame = AudioFrame.from_ndarray(np.frombuffer(data, np.int16).reshape(1, -1), layout="mono")
        frame.sample_rate = _RATE_HZ
        frame.time_base = Fraction(1, _RATE_HZ)
        frame.pts = self._at
        self._at += _FRAME
        return frame


async def speak(track: MediaStreamTrack, stream: pyaudio.Stream) -> None:
    """Plays what arrives."""
    to_mono = AudioResampler("s16", "mono", _RATE_HZ)
    while True:
        frame = await track.recv()
        if isinstance(frame, AudioFrame):
            for mono in to_mono.resample(frame):
                await asyncio.to_thread(stream.write, mono.to_ndarray().tobytes())


async def call(*, offers: bool) -> None:
    """Until its input ends."""
    audio = pyaudio.PyAudio()
    sound = {"format": pyaudio.paInt16, "channels": 1, "rate": _RATE_HZ}
    microphone = audio.open(**sound, input=True, frames_per_buffer=_FRAME)
    speaker = audio.open(**sound, output=True, frames_per_buffer=_FRAME)
    peer = RTCPeerConnection()
    speaking: list[asyncio.Task[None]] = []
    peer.on("track", lambda track: speaking.append(asyncio.create_task(speak(track, speaker))))
    peer.on("connectionstatechange", lambda: _say({"state": peer.connectionState}))
    peer.addTrack(Microphone(microphone))
    if offers:
        await peer.setLocalDescription(await peer.createOffer())
        _say({"sdp": peer.localDescription.sdp})
        await peer.setRemoteDescription(RTCSessionDescription(**await _hear(), type="answer"))
    else:
        await peer.setRemoteDescription(RTCSessionDescription(**await _hear(), type="offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        _say({"sdp": peer.localDescription.sdp})
    await asyncio.to_thread(sys.stdin.readline)
    await peer.close()
    for task in speaking:
        task.cancel()
    audio.terminate()


def _say(document: dict[str, str]) -> None:
    print(json.dumps(document), flush=True)


async def _hear() -> dict[str, str]:
    heard: dict[str, str] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    return heard


if __name__ == "__main__":
    asyncio.run(call(offers=sys.argv[1] == "offer"))

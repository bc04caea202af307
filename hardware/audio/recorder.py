"""Records both sides of what is said, for support, with a beep that both sides hear.

The beep is the North American recorder warning tone: 1400 Hz, 0.2 s, every 15 s (47 CFR 64.501,
ITU-T E.180 Supplement 2). The file is the device owner's alone (mode 600) and has a bound.
"""

import os
import queue
import threading
import wave
from pathlib import Path

import numpy as np

from bellwire.hardware.audio.block import BLOCK_S, SAMPLE_RATE_HZ, SILENCE, Block, saturated
from bellwire.hardware.audio.tones import RECORDING_NOTICE, LoopedTone

DEFAULT_LIMIT_S = 3600.0
_KEPT_BLOCKS = 500


class Recorder:
    """A stereo WAV file, captured left and played right, written by a thread of its own.

    `captured` is the voice thread's, `played` too. What the disk is too slow for is left out.

    Args:
        path: Where; must not exist yet.
        limit_s: How long it may get (an hour is 690 MB).

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, *, limit_s: float = DEFAULT_LIMIT_S) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self.path = path
        self.fault: str | None = None
        self.notice = LoopedTone(RECORDING_NOTICE)
        """What has to be heard from the speaker while it records."""
        self._notice_sent = LoopedTone(RECORDING_NOTICE)
        self._played: Block = SILENCE
        self._blocks_left = round(limit_s / BLOCK_S)
        self._blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(descriptor,), name="bellwire recorder", daemon=True
        )
        self._thread.start()

    def begin(self) -> None:
        """Somebody is in the call from now on: both sides hear the beep at once, however short it is."""
        self.notice.restart()
        self._notice_sent.restart()

    def played(self, block: Block) -> None:
        """Takes what the speaker is given, to be written beside what is captured next."""
        self._played = block

    def captured(self, block: Block) -> Block:
        """Takes the voice; returns it as it is to be sent, with the beep."""
        if self._blocks_left <= 0 or self.fault is not None:
            return block
        voice = saturated(block.astype(np.float32) + self._notice_sent.pull())
        if self._blocks.qsize() < _KEPT_BLOCKS:
            self._blocks_left -= 1
            self._blocks.put(np.stack((voice, self._played), axis=1).tobytes())
        self._played = SILENCE
        return voice

    def close(self) -> None:
        """Ends it; the file is complete then. Blocks."""
        self._blocks.put(None)
        self._thread.join()

    def _run(self, descriptor: int) -> None:
        try:
            with os.fdopen(descriptor, "wb") as file, wave.open(file, "wb") as wav:
                wav.setnchannels(2)
                wav.setsampwidth(2)
                wav.setframerate(SAMPLE_RATE_HZ)
                while (frames := self._blocks.get()) is not None:
                    if self.fault is None:
                        self._write(wav, frames)
        except OSError as error:
            self.fault = f"the recording {self.path} could not be completed: {error}"

    def _write(self, wav: wave.Wave_write, frames: bytes) -> None:
        try:
            wav.writeframesraw(frames)
        except OSError as error:
            self.fault = f"the recording {self.path} has ended: {error}"

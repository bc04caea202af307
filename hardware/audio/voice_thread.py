"""The thread between PortAudio's and whoever talks: it processes the voice and hands it on."""

import queue
import threading
from collections import deque
from collections.abc import Callable

from hardware.audio.block import Block
from hardware.audio.level import Meter
from hardware.audio.recorder import Recorder
from hardware.audio.voice_processing import VoiceProcessing

_KEPT_BLOCKS = 50
"""Half a second: a thread that is further behind drops what is new, rather than lag for ever."""
_PLAYED_AT_ONCE = 5
"""What was played waits for what is captured next, which needs it; where nothing is captured, for so
many blocks. So the thread is woken once in 10 ms, not twice."""


class VoiceThread:
    """Takes blocks as they are captured and played, in that order, from PortAudio's threads.

    Args:
        deliver: Called on the thread with each processed block; must not block.
        recorder: Keeps both sides, where there is one.
    """

    def __init__(
        self,
        deliver: Callable[[Block], None],
        recorder: Recorder | None = None,
    ) -> None:
        self.input = Meter()
        self.output = Meter()
        self.dropped = 0
        self.processing: VoiceProcessing | None = None
        """What is done to the voice; may be replaced at any time."""
        self._deliver = deliver
        self._recorder = recorder
        self._blocks: deque[tuple[bool, Block]] = deque()
        # A SimpleQueue's put never waits, not even for its reader. False: it is over.
        self._woken: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="bellwire voice", daemon=True)
        self._thread.start()

    def captured(self, block: Block) -> None:
        """Takes what the microphone gave. Returns at once."""
        self._put(True, block)

    def played(self, block: Block) -> None:
        """Takes what the speaker is given. Returns at once."""
        self._put(False, block)

    def stop(self) -> None:
        """Ends it; waits until it has. Blocks."""
        self._woken.put(False)
        self._thread.join()

    def _put(self, is_captured: bool, block: Block) -> None:
        waiting = len(self._blocks)
        if waiting >= _KEPT_BLOCKS:
            self.dropped += 1
            return
        self._blocks.append((is_captured, block))
        if is_captured or waiting + 1 >= _PLAYED_AT_ONCE:
            self._woken.put(True)

    def _run(self) -> None:
        while self._woken.get():
            while self._blocks:
                is_captured, block = self._blocks.popleft()
                if is_captured:
                    self._send(block)
                else:
                    self._hear(block)

    def _hear(self, block: Block) -> None:
        if self.processing is not None:
            self.processing.played(block)
        self.output.add(block)
        if self._recorder is not None:
            self._recorder.played(block)

    def _send(self, block: Block) -> None:
        voice = block if self.processing is None else self.processing.captured(block)
        self.input.add(voice)
        if self._recorder is not None:
            voice = self._recorder.captured(voice)
        self._deliver(voice)

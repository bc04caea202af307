"""The thread between PortAudio's and whoever talks: it processes the voice and hands it on."""

import queue
import threading
from collections.abc import Callable

from hardware.audio.block import Block
from hardware.audio.level import Meter
from hardware.audio.recorder import Recorder
from hardware.audio.voice_processing import VoiceProcessing

_KEPT_BLOCKS = 50
"""Half a second: a thread that is further behind drops what is new, rather than lag for ever."""


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
        # A SimpleQueue's put never waits, not even for its reader.
        self._blocks: queue.SimpleQueue[tuple[bool, Block] | None] = queue.SimpleQueue()
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
        self._blocks.put(None)
        self._thread.join()

    def _put(self, is_captured: bool, block: Block) -> None:
        if self._blocks.qsize() < _KEPT_BLOCKS:
            self._blocks.put((is_captured, block))
        else:
            self.dropped += 1

    def _run(self) -> None:
        while (item := self._blocks.get()) is not None:
            is_captured, block = item
            if not is_captured:
                if self.processing is not None:
                    self.processing.played(block)
                self.output.add(block)
                if self._recorder is not None:
                    self._recorder.played(block)
                continue
            voice = block if self.processing is None else self.processing.captured(block)
            self.input.add(voice)
            if self._recorder is not None:
                voice = self._recorder.captured(voice)
            self._deliver(voice)

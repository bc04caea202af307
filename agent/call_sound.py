"""What is seen of a call's sound from outside, whether there is any."""

from agent.call_meter import VolumeMeter
from agent.media_news import MediaOptions
from agent.voice import AudioStream


class CallSound:
    """The sound of one call: how it was accepted, whether it is muted, what is said and heard."""

    def __init__(self) -> None:
        self.options = MediaOptions()
        self.muted = False
        self.local_stream = AudioStream()
        self.remote_stream = AudioStream()
        self.input_meter = VolumeMeter()
        self.output_meter = VolumeMeter()

"""The sound card: PyAudio streams, what is mixed into the speaker and what is done to the voice. No calls.

`sound.Sound` is the door to it. Import it when it is first needed: PyAudio and numpy come with it,
soxr and livekit only when a stream needs them.
"""

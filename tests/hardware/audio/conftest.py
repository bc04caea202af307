"""A speaker and a microphone for a module's tests."""

from collections.abc import Iterator

import pytest

from tests.pulse import PulseAudio, running_pulse


@pytest.fixture(scope="module")
def pulse() -> Iterator[PulseAudio]:
    with running_pulse() as pulse:
        yield pulse

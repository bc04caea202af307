"""A PulseAudio of the tests' own: null sinks for speakers, their monitors for microphones.

Use it as a fixture of a module, in the test's process or in that of an agent (`environment`)::

    @pytest.fixture(scope="module")
    def pulse() -> Iterator[PulseAudio]:
        with running_pulse() as pulse:
            yield pulse
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.lab.pulse_daemon import PulseDaemon

PATIENCE_S = 20.0
SAMPLE_RATE_HZ = 48_000
SPEAKER, MICROPHONE = "bw-speaker", "bw-microphone"
"""ALSA devices, and the null sinks behind them: what the product plays to the one is heard with
`ear(SPEAKER)`; what `mouth(MICROPHONE)` says the product captures from the other."""

Samples = NDArray[np.int16]


class PulseAudio(PulseDaemon):
    """A running daemon, whose devices can be plugged in and unplugged."""

    def __init__(self, folder: Path) -> None:
        quietly = ("--disable-shm=yes", "--high-priority=no", "--realtime=no")
        super().__init__(folder, arguments=quietly)
        self._plugged: dict[str, str] = {}
        self.name_devices({SPEAKER: SPEAKER, MICROPHONE: f"{MICROPHONE}.monitor"})

    def plug_in(self, name: str) -> None:
        """A null sink, with its monitor."""
        # Without norewinds, a sink that was idle takes 2 s to notice that somebody listens.
        answer = self.ask(
            *("load-module", "module-null-sink", f"sink_name={name}", "norewinds=1"),
            *(f"rate={SAMPLE_RATE_HZ}", "channels=1"),
        )
        assert answer.returncode == 0, answer.stderr
        self._plugged[name] = answer.stdout.strip()

    def unplug(self, name: str) -> None:
        """It is gone, as a USB sound card that is pulled out."""
        answer = self.ask("unload-module", self._plugged.pop(name))
        assert answer.returncode == 0, answer.stderr

    def set_defaults(self, sink: str, source: str) -> None:
        """What the default ALSA device plays to and captures from."""
        assert self.ask("set-default-sink", sink).returncode == 0
        assert self.ask("set-default-source", source).returncode == 0

    def ear(self, sink: str) -> "Ear":
        """Hears what is played to a sink."""
        return Ear(self._own_environment(), f"{sink}.monitor")

    def mouth(self, sink: str, samples: Samples) -> "Mouth":
        """Says these samples, again and again, into the microphone that is the sink's monitor."""
        return Mouth(self._own_environment(), sink, samples)

    def _own_environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


_RAW = ("--raw", "--format=s16le", f"--rate={SAMPLE_RATE_HZ}", "--channels=1", "--latency-msec=20")


class Ear:
    """What was heard so far. Use it with `with`."""

    def __init__(self, environment: dict[str, str], source: str) -> None:
        self._environment = environment
        self._source = source
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "Ear":
        self._process = subprocess.Popen(  # noqa: S603
            ("parec", *_RAW, "-d", self._source),  # noqa: S607
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._file.close()

    @property
    def samples(self) -> Samples:
        """All that was heard."""
        size = os.fstat(self._file.fileno()).st_size
        return np.frombuffer(os.pread(self._file.fileno(), size - size % 2, 0), np.int16)


class Mouth:
    """Speaks until it is left. Use it with `with`."""

    def __init__(self, environment: dict[str, str], sink: str, samples: Samples) -> None:
        self._environment = environment
        self._sink = sink
        self._samples = samples

    def __enter__(self) -> None:
        file = tempfile.TemporaryFile()
        file.write(self._samples.tobytes() * (1 + 120 * SAMPLE_RATE_HZ // len(self._samples)))
        file.seek(0)
        self._process = subprocess.Popen(  # noqa: S603
            ("pacat", *_RAW, "-d", self._sink),  # noqa: S607
            env=self._environment,
            stdin=file,
        )
        file.close()

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running_pulse() -> Iterator[PulseAudio]:
    """A daemon with a speaker and a microphone, found by this process and its children; nothing of
    it is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="bw-pulse-"))  # a socket's path has to be short
    pulse = PulseAudio(folder)
    try:
        pulse.spawn()
        pulse.wait_ready()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in pulse.environment.items():
                patch.setenv(name, value)
            pulse.plug_in(SPEAKER)
            pulse.plug_in(MICROPHONE)
            pulse.set_defaults(SPEAKER, f"{MICROPHONE}.monitor")
            yield pulse
    finally:
        pulse.stop()
        shutil.rmtree(folder)


def similarity(heard: Samples, said: Samples) -> float:
    """How much of `said` is in `heard`, wherever it is: the peak of the normalised cross-correlation
    over windows as long as `said`, 0 to 1."""
    if len(heard) < len(said):
        return 0.0
    a, b = heard.astype(np.float64), said.astype(np.float64)
    size = 1 << (len(a) + len(b)).bit_length()
    products = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    products = products[: len(a) - len(b) + 1]
    squares = np.concatenate(([0.0], np.cumsum(a * a)))
    powers = (squares[len(b) :] - squares[: -len(b)]) * (b @ b)
    return float(np.max(np.abs(products) / np.sqrt(np.maximum(powers, 1e4 * len(b)))))


def speech(text: str, voice: str = "en") -> Samples:
    """espeak-ng saying it, mono at 48 kHz."""
    import soxr

    spoken = subprocess.run(  # noqa: S603
        ("espeak-ng", "-v", voice, "--stdout", text),  # noqa: S607
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    at_22_khz = np.frombuffer(spoken[44 : len(spoken) - len(spoken) % 2], np.int16)
    return np.asarray(soxr.resample(at_22_khz, 22_050, SAMPLE_RATE_HZ), np.int16)

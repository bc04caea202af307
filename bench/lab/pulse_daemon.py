"""A PulseAudio daemon of one's own, for tests and benchmarks: nothing of the user's is touched, and
nothing is left behind."""

import os
import subprocess
import time
from pathlib import Path

START_TIMEOUT_S = 20.0


class PulseDaemon:
    """A daemon. Its methods block.

    Args:
        folder: Where its socket and settings go; its own. A socket's path has to be short.
        modules: What it loads at its start, each with its arguments.
        settings: Its `daemon.conf`.
        arguments: Further arguments of `pulseaudio`.
    """

    def __init__(
        self,
        folder: Path,
        modules: tuple[str, ...] = (),
        *,
        settings: str = "",
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._folder = folder
        self._modules = (
            f"module-native-protocol-unix socket={folder}/native auth-anonymous=1",
            *modules,
        )
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "daemon.conf").write_text(settings)
        (folder / "client.conf").write_text("autospawn = no\nenable-shm = no\n")
        self.name_devices({})

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it, beside its own variables."""
        return {
            "ALSA_CONFIG_PATH": str(self._folder / "asound.conf"),
            "PULSE_SERVER": f"unix:{self._folder}/native",
            "PULSE_RUNTIME_PATH": str(self._folder / "runtime"),
            "PULSE_STATE_PATH": str(self._folder / "state"),
            "PULSE_CLIENTCONFIG": str(self._folder / "client.conf"),
            "PULSE_COOKIE": str(self._folder / "cookie"),
            "JACK_NO_START_SERVER": "1",
        }

    def name_devices(self, devices: dict[str, str]) -> None:
        """Which ALSA devices there are beside the default, each with its sink or source."""
        named = "".join(
            f'pcm.{name} {{ type pulse device "{device}" hint {{ show on description "{name}" }} }}\n'
            for name, device in devices.items()
        )
        (self._folder / "asound.conf").write_text(
            f"{named}pcm.!default {{ type pulse }}\nctl.!default {{ type pulse }}\n"
        )

    def spawn(self) -> None:
        """Starts it; `wait_ready` before it is used. It dies with the thread that calls this."""
        loads = (word for module in self._modules for word in ("-L", module))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                # Dies with its parent, however that ends.
                ("setpriv", "--pdeathsig", "KILL", "pulseaudio", "-n", "--daemonize=no",  # noqa: S607
                 "--use-pid-file=no", "--exit-idle-time=-1", "--log-target=stderr",
                 "--log-level=error", *self._arguments, *loads),
                env={
                    **os.environ,
                    **self.environment,
                    "HOME": str(self._folder),
                    "PULSE_CONFIG": str(self._folder / "daemon.conf"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Waits until it answers, with all its modules.

        Raises:
            RuntimeError: it does not; says what its log says.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while self._process is not None and self.ask("info").returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                log = (self._folder / "log").read_text(errors="replace")
                self.stop()
                raise RuntimeError(f"pulseaudio did not start: {log[-500:]}")
            time.sleep(0.02)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Has `pactl` do something."""
        return subprocess.run(  # noqa: S603
            ("pactl", *arguments),  # noqa: S607
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )

    def stop(self) -> None:
        """Ends it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

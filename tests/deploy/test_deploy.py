"""What an operator installs: the units, the broker's configuration, and the Pi installer."""

import asyncio
import datetime
import getpass
import importlib.metadata
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from packaging.requirements import Requirement

from bellwire.broker.embedded import free_port

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"
INSTALL_PI = DEPLOY / "install-pi"
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
MOSQUITTO_CTRL = shutil.which("mosquitto_ctrl")
PLUGIN = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
RELAY = "bellwire-relay"
PASSWORD = "correct-horse-battery"

needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None or MOSQUITTO_CTRL is None or PLUGIN is None,
    reason="mosquitto 2, mosquitto_ctrl and the dynamic-security plugin are not all installed",
)


def install_pi(*arguments: str | Path, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [INSTALL_PI, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PATH": path + os.environ["PATH"]},
    )


AGENT_TOML = """\
device_id = "front-door"
identity = "lobby"
[broker]
url = "mqtts://broker.example.org"
username = "front-door"
password = "secret"
"""


@pytest.fixture
def agent_toml(tmp_path: Path) -> Path:
    path = tmp_path / "front-door.toml"
    path.write_text(AGENT_TOML)
    return path


def stand_in(folder: Path, name: str, says: str) -> str:
    """A program that says something, first in the PATH that is returned."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
    (folder / name).chmod(0o755)
    return f"{folder}:"


def files_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# The Pi installer


def test_installer_is_executable_and_parses() -> None:
    assert os.access(INSTALL_PI, os.X_OK)
    subprocess.run(["bash", "-n", INSTALL_PI], check=True)  # noqa: S603, S607


def test_installer_explains_itself() -> None:
    answer = install_pi("--help")
    assert answer.returncode == 0
    for told in ("--dry-run", "--root", "bellwire devices add", "strict_gpiod"):
        assert told in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "bellwire devices add ID --identity NAME"),
        (["/nowhere/agent.toml"], "cannot read /nowhere/agent.toml"),
        (["--unknown"], "unknown option --unknown"),
        (["--root"], "--root needs a directory"),
        (["one.toml", "two.toml"], "not two"),
    ],
)
def test_installer_refuses_a_wrong_call_and_says_what_to_do(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    # Below an empty root, so that an agent.toml on this machine plays no part.
    answer = install_pi(f"--root={tmp_path}", *arguments)
    assert answer.returncode == 1
    assert complaint in answer.stderr
    assert not any(tmp_path.iterdir())


def test_installer_refuses_a_configuration_that_is_no_toml(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("device_id =")
    answer = install_pi("--dry-run", broken)
    assert answer.returncode == 1
    assert "copy it again from the server" in answer.stderr


def test_dry_run_names_every_step_and_changes_nothing(agent_toml: Path, tmp_path: Path) -> None:
    # Stand-ins that would leave a trace, first in PATH, for whatever changes a machine.
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "useradd", "usermod", "groupadd", "systemctl", "install", "pip"):
        (tools / name).write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
        (tools / name).chmod(0o755)
    answer = install_pi("--dry-run", agent_toml, path=f"{tools}:")
    assert answer.returncode == 0, answer.stderr
    assert not (tmp_path / "ran").exists()
    for step in (
        "--require-hashes -r",
        "--no-deps",
        f"-m 0640 -o root -g bellwire {agent_toml} /etc/bellwire/agent.toml",
        "/etc/systemd/system/bellwire-agent.service",
        "systemctl enable --quiet bellwire-agent.service",
    ):
        assert step in answer.stdout
    assert "nothing was changed" in answer.stderr


def test_staging_writes_the_files_with_their_modes_and_repeats_without_a_change(
    agent_toml: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    boot = root / "boot/firmware/config.txt"
    boot.parent.mkdir(parents=True)
    boot.write_text("[cm5]\ndtoverlay=dwc2\n")

    assert install_pi("--root", root, agent_toml).returncode == 0
    installed = root / "etc/bellwire/agent.toml"
    assert installed.read_bytes() == agent_toml.read_bytes()
    assert installed.stat().st_mode & 0o777 == 0o640
    unit = root / "etc/systemd/system/bellwire-agent.service"
    assert unit.read_bytes() == (DEPLOY / "bellwire-agent.service").read_bytes()
    assert boot.read_text().startswith("[cm5]\ndtoverlay=dwc2\n")
    assert re.search(r"^\[all\]\n(#.*\n)?dtparam=strict_gpiod$", boot.read_text(), re.M)

    before = files_below(root)
    assert install_pi("--root", root, agent_toml).returncode == 0
    assert install_pi("--root", root).returncode == 0, "the installed configuration is enough"
    assert files_below(root) == before


@pytest.mark.parametrize(
    ("model", "driver", "reads", "said"),
    [
        (b"raspberrypi,4-model-b\0brcm,bcm2711\0", "pinctrl_bcm2835", "Y", True),
        pytest.param(
            *(b"raspberrypi,4-model-b\0brcm,bcm2711\0", "pinctrl_bcm2835", "N", False),
            marks=pytest.mark.full,
        ),
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", "pinctrl_bcm2835", "Y", False),
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", "pinctrl_rp1", "Y", True),
    ],
)
def test_installer_says_that_a_door_is_not_used_where_the_kernel_keeps_a_pins_level(
    model: bytes, driver: str, reads: str, said: bool, agent_toml: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    parameter = root / f"sys/module/{driver}/parameters/persist_gpio_outputs"
    tree = root / "proc/device-tree/compatible"
    for file in (parameter, tree):
        file.parent.mkdir(parents=True)
    parameter.write_text(f"{reads}\n")
    tree.write_bytes(model)
    answer = install_pi("--root", root, agent_toml)
    assert answer.returncode == 0
    assert ("THE DOOR IS NOT USED YET" in answer.stderr) is said
    assert ("sudo reboot" in answer.stderr) is said


def test_staging_replaces_a_changed_configuration(agent_toml: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert install_pi("--root", root, agent_toml).returncode == 0
    other = AGENT_TOML.replace("front-door", "back-door")
    agent_toml.write_text(other)
    assert install_pi("--root", root, agent_toml).returncode == 0
    assert (root / "etc/bellwire/agent.toml").read_text() == other


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            "[panel.answer]\npin = 99\n",
            "panel.answer.pin: there is no such pin: pins are BCM numbers, 0 to 27",
        ),
        ("[pannel.answer]\npin = 4\n", "unknown section [pannel]; did you mean `panel`?"),
        pytest.param(
            *(
                "[panel]\ncall_timeout_s = 5\n",
                "`call_timeout_s` in [panel]; it belongs at the top",
            ),
            marks=pytest.mark.full,
        ),
        pytest.param(
            *('[audio]\nring_tone = "dingdong"\n', "there is no ring tone 'dingdong'"),
            marks=pytest.mark.full,
        ),
    ],
)
def test_installer_refuses_a_file_that_the_agent_would_refuse_before_it_changes_anything(
    wrong: str, told: str, agent_toml: Path, tmp_path: Path
) -> None:
    """It was installed, and the agent died and was started again without end."""
    agent_toml.write_text(AGENT_TOML + wrong)
    root = tmp_path / "root"
    answer = install_pi("--root", root, agent_toml)
    assert answer.returncode == 1
    assert f"install-pi: {agent_toml} is not a valid agent configuration: " in answer.stderr
    assert told in answer.stderr
    assert "nothing was changed" in answer.stderr
    assert not root.exists()


@pytest.mark.parametrize(
    ("url", "allowing", "told"),
    [
        ("mqtt://192.0.2.7", "--insecure", "has no TLS"),
        ("mqtt://127.0.0.1:1", "--local", "is this Pi itself, and none answers there"),
        ("http://192.0.2.7", None, "must be mqtt(s)://HOST"),
    ],
)
def test_installer_refuses_a_broker_that_gives_the_password_away_or_is_not_there(
    url: str, allowing: str | None, told: str, agent_toml: Path
) -> None:
    agent_toml.write_text(AGENT_TOML.replace("mqtts://broker.example.org", url))
    refused = install_pi("--dry-run", agent_toml)
    assert (refused.returncode, told in refused.stderr) == (1, True), refused.stderr
    assert "would run" not in refused.stdout
    if allowing is not None:
        assert allowing in refused.stderr
        assert install_pi("--dry-run", allowing, agent_toml).returncode == 0


def test_installer_takes_a_broker_on_the_pi_itself_that_answers(agent_toml: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"mqtt://127.0.0.1:{listener.getsockname()[1]}"
        agent_toml.write_text(AGENT_TOML.replace("mqtts://broker.example.org", url))
        assert install_pi("--dry-run", agent_toml).returncode == 0


def test_an_upgrade_leaves_an_installed_file_as_it_is_whose_broker_has_no_tls(
    agent_toml: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    agent_toml.write_text(AGENT_TOML.replace("mqtts:", "mqtt:"))
    assert install_pi("--root", root, "--insecure", agent_toml).returncode == 0
    assert install_pi("--root", root).returncode == 0


def test_installer_refuses_32_bit_systems_and_small_cards_and_tells_all_that_is_wrong(
    agent_toml: Path, tmp_path: Path
) -> None:
    """On 32-bit Raspberry Pi OS pip failed after minutes, for want of a wheel, with the agent half there."""
    path = stand_in(tmp_path / "tools", "dpkg", "armhf")
    for name in ("apt-get", "systemctl"):
        stand_in(tmp_path / "tools", name, f"ran: {name}")
    full = "Filesystem 1024-blocks Used Available Capacity Mounted\n/dev/root 99 98 1024 99% /"
    stand_in(tmp_path / "tools", "df", full)
    for arguments in ((), ("--dry-run",)):
        answer = install_pi(*arguments, agent_toml, path=path)
        assert answer.returncode == 1
        assert "this system is armhf" in answer.stderr
        assert "write the 64-bit Raspberry Pi OS to the card" in answer.stderr
        assert "only 1 MB are free for /opt/bellwire" in answer.stderr
        assert "nothing was changed" in answer.stderr
        assert "ran: " not in answer.stdout + answer.stderr


def all_that_needs(*names: str) -> set[str]:
    """These distributions, and all that they need."""
    needed, waiting = set[str](), [*names]
    while waiting:
        name = waiting.pop().replace("_", "-")
        if name not in needed:
            needed.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                each.name
                for each in wanted
                if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return needed


def test_installer_takes_all_that_the_agents_loader_needs_from_the_lock() -> None:
    listed = re.search(r"^loader_needs='([^']+)'", INSTALL_PI.read_text(), re.M)
    assert listed is not None
    assert set(listed[1].split()) == all_that_needs("pydantic", "tomli-w")
    locked = (CHECKOUT / "requirements/agent.lock").read_text()
    for name in listed[1].split():
        assert re.search(rf"^{re.escape(name)}==", locked, re.M), name


def test_installer_takes_the_whole_build_back_end_from_the_lock() -> None:
    listed = re.search(r"\^\(([a-z|-]+)\)==", INSTALL_PI.read_text())
    assert listed is not None
    needed = all_that_needs("hatchling")
    assert set(listed[1].split("|")) == needed
    locked = (CHECKOUT / "requirements/dev.lock").read_text()
    for name in needed:
        assert re.search(rf"^{re.escape(name)}==", locked, re.M), name


# The units


@pytest.mark.parametrize("name", ["bellwire-relay.service", "bellwire-agent.service"])
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    # Only the program is replaced, since it is not installed here.
    unit = (DEPLOY / name).read_text().replace("/opt/bellwire/bin/bellwire", "/bin/true")
    assert "/bin/true" in unit
    (tmp_path / name).write_text(unit)
    answer = subprocess.run(  # noqa: S603
        [analyze, "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    about_it = [line for line in answer.stderr.splitlines() if name in line]
    assert (answer.returncode, about_it) == (0, []), answer.stderr


# The broker


def certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1, its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "fullchain.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "privkey.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def as_the_readme_says(dynsec_command: str, replaced: dict[str, str]) -> None:
    """Runs the README's own `mosquitto_ctrl` command, the password typed at its prompt."""
    for from_, to in replaced.items():
        dynsec_command = dynsec_command.replace(from_, to)
    answer = subprocess.run(  # noqa: S603
        shlex.split(dynsec_command),
        input=f"{PASSWORD}\n" * 2,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    said = answer.stdout + answer.stderr
    assert answer.returncode == 0, f"{dynsec_command}: {said}"
    assert "Error" not in said, f"{dynsec_command}: {said}"


@dataclass(frozen=True)
class Broker:
    port: int
    tls_port: int
    ca_file: Path

    def relay(self) -> aiomqtt.Client:
        return aiomqtt.Client(
            "127.0.0.1",
            self.port,
            username=RELAY,
            password=PASSWORD,
            protocol=aiomqtt.ProtocolVersion.V5,
        )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Mosquitto on deploy/mosquitto.conf, with paths and ports of this test, set up as the README says."""
    tmp_path = tmp_path_factory.mktemp("broker")
    certificate(tmp_path / "certs")
    port, tls_port = free_ports(2)
    configuration = (DEPLOY / "mosquitto.conf").read_text()
    replacements = {
        r"^plugin /.*": f"plugin {PLUGIN}",
        "/var/lib/mosquitto": str(tmp_path),
        "/etc/mosquitto/certs": str(tmp_path / "certs"),
        "/run/mosquitto": str(tmp_path),
        r"^listener 1883\b": f"listener {port}",
        r"^listener 8883\b": f"listener {tls_port}",
        r"^log_type notice": "log_type notice\nlog_type information",  # says that it is running
    }
    for pattern, replacement in replacements.items():
        configuration, count = re.subn(pattern, replacement, configuration, flags=re.M)
        assert count, f"{pattern} is not in deploy/mosquitto.conf"
    # As root mosquitto would become its own user, who cannot read a test's folder.
    path = tmp_path / "mosquitto.conf"
    path.write_text(f"user {getpass.getuser()}\n{configuration}")

    commands = re.findall(r"\bmosquitto_ctrl .*?dynsec [^)\n]+", (DEPLOY / "README.md").read_text())
    initialise, *allow = commands
    as_the_readme_says(initialise, {"/var/lib/mosquitto": str(tmp_path)})
    assert MOSQUITTO is not None
    with subprocess.Popen(  # noqa: S603
        [MOSQUITTO, "-c", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said: list[str] = []
            for line in process.stdout:
                said.append(line)
                if re.search(r"version \S+ running", line):
                    break
            else:
                pytest.fail(f"mosquitto refuses deploy/mosquitto.conf: {''.join(said)}")
            for command in allow:
                as_the_readme_says(command, {"-p 1883": f"-p {port}"})
            yield Broker(port, tls_port, tmp_path / "certs/fullchain.pem")
        finally:
            process.terminate()


@needs_mosquitto
async def test_broker_refuses_an_anonymous_client_on_both_listeners(broker: Broker) -> None:
    tls = ssl.create_default_context(cafile=broker.ca_file)
    for host, port, context in (
        ("127.0.0.1", broker.port, None),
        ("localhost", broker.tls_port, tls),
    ):
        with pytest.raises(aiomqtt.MqttError, match=r"[Nn]ot authori[sz]ed"):
            async with aiomqtt.Client(
                host, port, tls_context=context, protocol=aiomqtt.ProtocolVersion.V5
            ):
                pass


@needs_mosquitto
async def test_broker_lets_the_relay_hear_devices_and_speak_to_them(broker: Broker) -> None:
    topic = "bellwire/v1/device/front-door/request"
    async with broker.relay() as listening, broker.relay() as speaking:
        await listening.subscribe("$share/relay/bellwire/v1/device/+/request", qos=1)
        await speaking.publish(topic, b"hello", qos=1)
        async with asyncio.timeout(10):
            message = await anext(aiter(listening.messages))
    assert (message.topic.value, message.payload) == (topic, b"hello")


@needs_mosquitto
async def test_broker_passes_large_messages_over_tls_and_drops_the_sender_of_a_too_large_one(
    broker: Broker,
) -> None:
    topic = "bellwire/v1/device/front-door/call"
    large = bytes(72 * 1024)
    tls = ssl.create_default_context(cafile=broker.ca_file)
    async with aiomqtt.Client(
        "localhost",
        broker.tls_port,
        username=RELAY,
        password=PASSWORD,
        tls_context=tls,
        protocol=aiomqtt.ProtocolVersion.V5,
    ) as device:
        await device.subscribe(topic, qos=1)
        async with broker.relay() as relay:
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(10), broker.relay() as careless:
                    await careless.publish(topic, bytes(256 * 1024), qos=0)
                    await anext(aiter(careless.messages))  # ends when it is disconnected
            await relay.publish(topic, large, qos=1)
        async with asyncio.timeout(10):
            message = await anext(aiter(device.messages))
    assert message.payload == large

"""What systemd hears from Bellwire, on a real datagram socket."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.cli.process.service import keep_watchdog, notify


@pytest.fixture(autouse=True)
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listening


def heard(listening: socket.socket) -> list[str]:
    """Every message that has arrived: a Unix datagram is there as soon as it was sent."""
    messages: list[str] = []
    while True:
        try:
            messages.append(listening.recv(4096).decode())
        except BlockingIOError:
            return messages


class Clock:
    """A sleep that takes no time and holds the sleeper after a number of naps."""

    def __init__(self, naps: int) -> None:
        self.naps = naps
        self.asked: list[float] = []
        self.rested = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        if len(self.asked) > self.naps:
            self.rested.set()
            await asyncio.Event().wait()


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_notify_sends_the_state_as_one_datagram(systemd: socket.socket) -> None:
    assert notify("READY=1\nSTATUS=ringing") is True
    assert heard(systemd) == ["READY=1\nSTATUS=ringing"]


def test_notify_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"bellwire-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("READY=1") is True
        assert heard(listening) == ["READY=1"]


def test_notify_does_nothing_outside_systemd() -> None:
    assert notify("READY=1") is False


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative/socket", "/nowhere/notify"])
def test_notify_does_not_fail_on_an_address_it_cannot_reach(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify("READY=1") is False


def test_notify_drops_a_message_rather_than_wait_for_a_stalled_systemd(
    systemd: socket.socket,
) -> None:
    sent = 0
    while notify("WATCHDOG=1"):
        sent += 1
        assert sent < 100_000, "the socket's queue never filled"
    assert heard(systemd) == ["WATCHDOG=1"] * sent


async def test_watchdog_is_fed_at_half_its_period_between_ready_and_stopping(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    clock = Clock(naps=2)
    task = asyncio.create_task(keep_watchdog(sleep=clock.sleep))
    await clock.rested.wait()
    assert heard(systemd) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    assert clock.asked == [15.0, 15.0, 15.0]

    await cancel(task)
    assert heard(systemd) == ["STOPPING=1"]


async def test_watchdog_starves_while_the_service_is_not_alive(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    clock = Clock(naps=3)
    health = iter([True, False, False, True])
    task = asyncio.create_task(keep_watchdog(sleep=clock.sleep, alive=lambda: next(health)))
    await clock.rested.wait()
    assert heard(systemd) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    await cancel(task)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"},
    ],
    ids=["not asked for", "switched off", "meant for another process"],
)
async def test_without_a_watchdog_only_ready_and_stopping_are_said(
    variables: dict[str, str], systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    clock = Clock(naps=0)
    task = asyncio.create_task(keep_watchdog(sleep=clock.sleep))
    await asyncio.sleep(0)
    assert heard(systemd) == ["READY=1"]

    await cancel(task)
    assert heard(systemd) == ["STOPPING=1"]
    assert clock.asked == []


async def test_stopping_is_said_when_the_health_check_itself_fails(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")

    def broken() -> bool:
        raise RuntimeError("no pulse")

    with pytest.raises(RuntimeError, match="no pulse"):
        await keep_watchdog(alive=broken)
    assert heard(systemd) == ["READY=1", "STOPPING=1"]

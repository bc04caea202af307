"""Each benchmark runs to its end, prints the figures that others read, and stops when it is told to."""

import asyncio
import json
import shlex
import signal
import sys
from asyncio.subprocess import PIPE
from importlib import import_module

import pytest

SMALL = {
    # More rounds than a device may be rung at once.
    "ring_latency": (("--rounds", "12"), {"p50_ms", "p99_ms", "bare_p50_ms", "ratio_p50"}),
    "calls_throughput": (
        ("--rounds", "1", "--seconds", "0.2", "--ringing", "100"),
        {"sqlite_per_s", "postgres_per_s", "ratio_sqlite", "ratio_postgres"},
    ),
    "push_throughput": (
        ("--rounds", "1", "--seconds", "0.2"),
        {"per_s", "ratio_bare_single", "ratio_bare", "p99_ms", "scale_2_processes"},
    ),
    "fleet_changes": (
        ("--rounds", "1", "--agents", "1", "3"),
        {"p95_s_1", "p95_s_3", "ratio_bare"},
    ),
}

IN_THE_BACKGROUND = """sh -c 'trap "" INT; exec "$@"' sh"""
"""As a shell starts what it runs there: SIGINT is ignored."""


async def started(name: str, *arguments: str, within: str = "") -> asyncio.subprocess.Process:
    """It at work, `within` a command that runs it."""
    command = (*shlex.split(within), sys.executable, "-m", f"bench.{name}", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


@pytest.mark.parametrize(
    "name",
    [
        "ring_latency",
        "fleet_changes",
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in ("calls_throughput", "push_throughput")
        ),
    ],
)
async def test_prints_what_others_read(name: str) -> None:
    arguments, keys = SMALL[name]
    process = await started(name, *arguments)
    printed, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    figures = json.loads(printed.splitlines()[-1])
    assert keys <= figures.keys()
    assert all(figures[key] > 0 for key in keys), figures


@pytest.mark.parametrize(
    ("name", "number", "within"),
    [
        ("fleet_changes", signal.SIGINT, ""),
        ("push_throughput", signal.SIGTERM, IN_THE_BACKGROUND),
        *(
            pytest.param(name, number, "", marks=pytest.mark.full)
            for name, number in (
                ("push_throughput", signal.SIGINT),
                ("push_throughput", signal.SIGTERM),
                ("fleet_changes", signal.SIGTERM),
            )
        ),
    ],
)
async def test_ends_in_order_when_it_is_told_to(
    name: str, number: signal.Signals, within: str
) -> None:
    process = await started(name, within=within)
    assert process.stderr is not None
    await process.stderr.readline()  # It has begun.
    process.send_signal(number)
    _, said = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ring_latency", ("--rounds", "0"), "a whole number from 1"),
        ("fleet_changes", ("--agents", "10", "many"), "a whole number from 1"),
        ("calls_throughput", ("--seconds", "inf"), "more than 0"),
        ("push_throughput", ("--seconds", "soon"), "more than 0"),
    ],
)
def test_says_what_an_argument_is_to_be(
    name: str,
    arguments: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        import_module(f"bench.{name}").main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{arguments[0]}: " in said
    assert expected in said

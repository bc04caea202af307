"""Each benchmark runs to its end, prints the figures that others read, and stops when it is told to."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE

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


async def started(name: str, *arguments: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", f"bench.{name}", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


@pytest.mark.parametrize("name", SMALL)
async def test_prints_what_others_read(name: str) -> None:
    arguments, keys = SMALL[name]
    process = await started(name, *arguments)
    printed, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    figures = json.loads(printed.splitlines()[-1])
    assert keys <= figures.keys()
    assert all(figures[key] > 0 for key in keys), figures


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["push_throughput", "fleet_changes"])
async def test_ends_in_order_when_it_is_told_to(name: str, number: signal.Signals) -> None:
    process = await started(name)
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
async def test_says_what_an_argument_is_to_be(
    name: str, arguments: tuple[str, ...], expected: str
) -> None:
    process = await started(name, *arguments)
    _, said = await process.communicate()
    assert process.returncode == 2
    assert f"{arguments[0]}: " in said.decode()
    assert expected in said.decode()

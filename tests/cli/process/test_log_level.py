"""How much an agent logs changes while it runs."""

import subprocess
import sys

PROGRAM = """
import logging, sys
import structlog
from bellwire.cli.process.logs import configure_logs, set_log_level
configure_logs("warning", "json", sys.stdout)
ours, theirs = structlog.get_logger("agent.x"), logging.getLogger("library")
for level in ("warning", "debug", "error"):
    set_log_level(level)
    for log in (ours, theirs):
        log.debug(f"debug at {level}")
        log.warning(f"warning at {level}")
        log.error(f"error at {level}")
"""


def test_a_level_counts_at_once_for_our_logs_and_those_of_libraries() -> None:
    command = [sys.executable, "-c", PROGRAM]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603
    for line, times in (
        ("debug at warning", 0),
        ("warning at warning", 2),
        ("debug at debug", 2),
        ("warning at error", 0),
        ("error at error", 2),
    ):
        assert shown.count(line) == times, line

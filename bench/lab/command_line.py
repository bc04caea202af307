"""What the benchmarks' commands have in common: values of arguments, refused with a word on what is
expected, and an end in order when they are told to stop."""

import asyncio
import signal
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

_INTERRUPTED = 128 + signal.SIGINT
"""The exit code that a shell gives to what Ctrl-C has ended."""


def at_least_one(text: str) -> int:
    """A whole number from 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not (text.isdecimal() and text.isascii() and int(text) > 0):
        raise ArgumentTypeError(f"a whole number from 1 is expected, not {text}")
    return int(text)


def duration_s(text: str) -> float:
    """Seconds, more than 0.

    Raises:
        ArgumentTypeError: they are not.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < inf:
        raise ArgumentTypeError(f"seconds, more than 0, are expected, not {text}")
    return value


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM does what Ctrl-C does, and either lets what runs clean up, then ends the
    process without a traceback. So too where a shell, as it does in the background, had it ignore
    SIGINT: it would otherwise hear neither."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)

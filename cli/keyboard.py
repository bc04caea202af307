"""What is typed: keys one by one, without waiting for Enter and without echo; and lines, from a terminal
or from a pipe."""

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[int]:
    """Gives the descriptor on which keys arrive one by one, and mends the terminal afterwards."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


_POLL_S = 0.25


ReadLines = Callable[[Callable[[str], None]], list[str]]


@contextmanager
def typed_lines() -> Iterator[ReadLines]:
    """Gives a function that waits a moment and returns the lines that were typed meanwhile, telling
    of the one that is being typed."""
    if not sys.stdin.isatty():
        yield _Typed(sys.stdin.fileno()).read
        return
    with single_keys() as terminal:
        yield _Typed(terminal).read


class _Typed:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line = ""
        self._ended = False

    def read(self, typing: Callable[[str], None]) -> list[str]:
        watched = [] if self._ended else [self._descriptor]
        ready, _, _ = select.select(watched, [], [], _POLL_S)
        lines: list[str] = []
        if ready:
            data = os.read(self._descriptor, 4096)
            self._ended = not data
            for key in data.decode(errors="ignore"):
                if key in "\r\n":
                    lines.append(self._line)
                    self._line = ""
                elif key in "\x7f\b":
                    self._line = self._line[:-1]
                elif key.isprintable():
                    self._line += key
        typing(self._line)
        return lines

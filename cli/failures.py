"""How a command ends when something is wrong: one clear line, and exit code 1."""

import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from bellwire.config.setting_mistakes import mistake_in_words
from bellwire.signaling.errors import CallError, Refusal

P = ParamSpec("P")
R = TypeVar("R")

_errors = Console(stderr=True)


def fail(message: str) -> NoReturn:
    """Ends the command with a message."""
    _errors.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Has a command's expected errors shown as one line, not as a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except* Refusal as errors:
            error = _first(errors)
        except* ValidationError as errors:
            error = _first(errors)
        except* CallError as errors:
            error = _first(errors)
        fail(_text(error))

    return run


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = errors.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _text(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        from bellwire.config.relay import (
            RelaySettings,  # slow to load, and only who is wrong waits for it
        )

        problems = error.errors(include_url=False, include_input=False)
        return "; ".join(
            mistake_in_words(problem, RelaySettings.model_fields) for problem in problems
        )
    return str(error)

"""Structured logs: JSON lines in production, readable ones in a terminal; never a secret."""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRETS = frozenset({"password", "token", "api_key", "authorization", "private_key", "secret"})


def configure_logs(
    level: Literal["debug", "info", "warning", "error"] = "info",
    layout: Literal["auto", "console", "json"] = "auto",
    stream: TextIO = sys.stderr,
) -> None:
    """Sends all logs, those of libraries included, to a stream. `auto` is readable on a terminal and
    JSON elsewhere."""
    readable = layout == "console" or (layout == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
    ]
    render: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if readable
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(
            "debug"
        ),  # the root's level counts, and may change
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if readable else [structlog.processors.format_exc_info]),
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    set_log_level(level)
    # hpack would write every header in the clear, authorization among them.
    for chatty in ("httpx", "httpcore", "hpack", "alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def set_log_level(level: str) -> None:
    """Changes how much is logged from now on: `debug`, `info`, `warning` or `error`."""
    logging.getLogger().setLevel(level.upper())


def _hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for name in event.keys() & _SECRETS:
        event[name] = "***"
    return event

"""When the other side of an HTTP channel asks to be tried again: its header `Retry-After`, seconds or a
date (RFC 9110, 10.2.3). Wrong ones are passed over: the channel's own backoff stands."""

from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def read_retry_after(value: str | None, now: datetime, *, longest_s: float) -> float | None:
    """The seconds to wait, up to `longest_s` and not below 0; None where nothing that can be read is
    asked for."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), longest_s)
    moment = read_http_date(text)
    if moment is None:
        return None
    return min(max((moment - now).total_seconds(), 0.0), longest_s)


def read_http_date(value: str | None) -> datetime | None:
    """The moment in a header that holds a date; None where there is none."""
    with suppress(ValueError, TypeError, OverflowError):
        if value:
            moment = parsedate_to_datetime(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None

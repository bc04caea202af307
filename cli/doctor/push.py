"""The doctor's look at a relay's push settings: apps, webhooks, public URL, and the clock that Apple's
and Google's tokens need right."""

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from bellwire.cli.doctor.credentials import (
    examine_ca_file,
    examine_service_account,
    examine_text_secret,
    examine_token_key,
    examine_voip_certificate,
    examine_webhook_secrets,
)
from bellwire.cli.doctor.diagnosis import Finding, bad, good, unknown, warning
from bellwire.config.relay import ApnsApp, FcmApp, RelaySettings, WebhookTarget

_SKEW_S = 30
_TIMEOUT_S = 5.0
_APPLE = "https://www.apple.com"
"""Its push servers do not tell the time; they are looked for separately."""

_GOOGLE = "https://fcm.googleapis.com"
_BUNDLE_ID = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_PACKAGE = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")


def examine_push(settings: RelaySettings, now: datetime | None = None) -> Iterator[Finding]:
    """The push settings of a relay, without sending anything to anybody."""
    now = now or datetime.now(UTC)
    if not (settings.apns or settings.fcm or settings.webhooks):
        yield unknown("no push app and no webhook is set up", "docs/push.md shows how")
    for bundle_id, ios in settings.apns.items():
        yield from _apns(bundle_id, ios, now)
    for package, android in settings.fcm.items():
        yield from _fcm(package, android)
    for name, target in settings.webhooks.items():
        yield from _webhook(name, target)
    yield from _public_url(settings)
    yield from _clocks(settings)


def has_push(settings: RelaySettings) -> bool:
    """Whether anything is set that `examine_push` looks at."""
    return bool(
        settings.apns
        or settings.fcm
        or settings.webhooks
        or settings.public_url
        or settings.twilio_auth_token_file
    )


def _apns(bundle_id: str, app: ApnsApp, now: datetime) -> Iterator[Finding]:
    setting = f'[apns."{bundle_id}"]'
    if bundle_id.endswith(".voip"):
        yield bad(
            f"{setting}: .voip is no part of a bundle id",
            f'write [apns."{bundle_id.removesuffix(".voip")}"]: the relay adds .voip itself',
        )
    elif not _BUNDLE_ID.fullmatch(bundle_id):
        yield bad(
            f"{setting} does not look like a bundle id",
            'write the app\'s own, in quotes, as [apns."com.example.app"]',
        )
    if app.key_file is not None:
        yield from examine_token_key(app.key_file, app.key_id)
    if app.certificate_file is not None:
        yield from examine_voip_certificate(app.certificate_file, bundle_id, now)
    if app.ca_file is not None:
        yield from examine_ca_file(app.ca_file)


def _fcm(package: str, app: FcmApp) -> Iterator[Finding]:
    setting = f'[fcm."{package}"]'
    if not _PACKAGE.fullmatch(package):
        yield bad(
            f"{setting} does not look like a package name",
            'write the app\'s own, in quotes, as [fcm."com.example.app"]',
        )
    if app.credentials_file is not None:
        yield from examine_service_account(app.credentials_file, app.project_id)
    elif app.project_id or os.environ.get("GOOGLE_CLOUD_PROJECT"):
        yield good(f"{setting} uses this machine's workload identity")
    else:
        yield warning(
            f"{setting} names neither an account nor a project",
            "give credentials_file, or, with a workload identity, project_id",
        )
    if app.ca_file is not None:
        yield from examine_ca_file(app.ca_file)


def _webhook(name: str, target: WebhookTarget) -> Iterator[Finding]:
    setting, url = f"[webhooks.{name}]", urlsplit(target.url)
    if not url.hostname:
        yield bad(f"{setting}: its url names no host", "write https://HOST/PATH")
    elif _is_private(url.hostname) and not target.allow_private_network:
        yield bad(
            f"{setting}: {url.hostname} is in a private network, where the relay sends nothing",
            "should that be meant, add allow_private_network = true",
        )
    elif url.scheme == "http" and not target.allow_private_network:
        yield bad(f"{setting}: http:// is for private networks only", "use an https:// url")
    yield from examine_webhook_secrets(target.secret_file)
    if target.ca_file is not None:
        yield from examine_ca_file(target.ca_file)


def _is_private(host: str) -> bool:
    """Whether a host is an address that is not of the public internet; of names it is not asked."""
    if host == "localhost":
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _public_url(settings: RelaySettings) -> Iterator[Finding]:
    if settings.twilio_auth_token_file is not None:
        yield from examine_text_secret(
            settings.twilio_auth_token_file, "Twilio's auth token", "[0-9a-f]{32}"
        )
        if settings.public_url is None and settings.voice_url is None:
            yield bad(
                "twilio_auth_token_file is set, and public_url is not",
                "Twilio signs the URL that it calls: write the relay's own, as Twilio sees it",
            )
    if settings.public_url is None:
        return
    url = urlsplit(settings.public_url)
    if url.query or url.fragment or not url.hostname:
        yield bad(
            f"public_url {settings.public_url} is no plain URL", "write https://HOST, no query"
        )
        return
    try:
        answer = httpx.get(f"{settings.public_url.rstrip('/')}/healthz", timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield unknown(
            f"public_url {settings.public_url} is not reached from here: {error}",
            "from outside too? It has to lead to the relay, through your proxy",
        )
        return
    if not answer.is_success:
        yield bad(
            f"public_url {settings.public_url} answers {answer.status_code} to /healthz",
            "it has to lead to the relay, with no path of its own before /v1",
        )
    elif url.scheme == "http" and not _is_private(url.hostname):
        yield warning(f"public_url {settings.public_url} is not encrypted", "use https://")
    else:
        yield good(f"public_url {settings.public_url} leads to a relay")


def _clocks(settings: RelaySettings) -> Iterator[Finding]:
    """This machine's clock against Apple's and Google's, or those of the servers set in their place."""
    asked: dict[str, Path | None] = {}
    for ios in settings.apns.values():
        asked[_APPLE if ios.server is None else f"https://{ios.server}"] = ios.ca_file
    for android in settings.fcm.values():
        asked[_GOOGLE if android.server is None else android.server] = android.ca_file
    for url, ca_file in asked.items():
        yield _clock(url, ca_file)


def _clock(url: str, ca_file: Path | None) -> Finding:
    unchecked = f"this machine's clock was not compared with that of {url}"
    try:
        trust = True if ca_file is None else ssl.create_default_context(cafile=ca_file)
        answer = httpx.head(url, timeout=_TIMEOUT_S, verify=trust)
        there = parsedate_to_datetime(answer.headers["date"])
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return unknown(f"{unchecked}: it is not reached ({error})", "may this machine reach it?")
    except (KeyError, ValueError):
        return unknown(f"{unchecked}: it does not tell the time")
    skew_s = (datetime.now(UTC) - there).total_seconds()
    if abs(skew_s) > _SKEW_S:
        return bad(
            f"this machine's clock is {skew_s:+.0f} s from that of {url}: its tokens are refused",
            "set it by NTP: `timedatectl set-ntp true`",
        )
    return good(f"this machine's clock agrees with that of {url}")

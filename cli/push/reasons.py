"""What Apple's and Google's reasons mean and what to do: for `bellwire push test` and docs/push.md.

The names are Apple's ("Handling notification responses from APNs") and Google's ("ErrorCode" of the
FCM v1 interface, and the error codes of Google's APIs).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

REMOVES = "removes the token"
AGAIN = "tries again until the deadline"
SELDOM = "keeps it, tries seldom, alarms"
GIVES_UP = "gives this push up"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a push service did not take a push: its HTTP status, what the relay does, what you do.
    `words`: how else it is said, any of them, in place of its name."""

    status: int
    meaning: str
    relay: str
    next_step: str
    words: tuple[str, ...] = ()


_NEW_TOKEN = "open the app, so that it registers its token anew"  # noqa: S105 - no password
_CHECK_KEY = "compare key_id, team_id and key_file with Apple's, then run `bellwire doctor`"
_WAIT = "nothing: wait, and look at Apple's system status should it last"
_WAIT_GOOGLE = "nothing: wait, and look at Firebase's status should it last"
_REPORT = "report it: the relay should never send such a push"

APNS: Mapping[str, Reason] = {
    "BadDeviceToken": Reason(
        400,
        "no token of this environment",
        REMOVES,
        "a build run from Xcode has a token of the sandbox, one from TestFlight or the App Store"
        " one of production: register it with the right environment",
    ),
    "DeviceTokenNotForTopic": Reason(
        400,
        "the token is another app's",
        REMOVES,
        "register the token under the bundle id of the app that got it",
    ),
    "TopicDisallowed": Reason(
        400,
        "the key or certificate may not push to this app",
        SELDOM,
        "use a key of the team that owns the app, or a VoIP certificate of this bundle id",
    ),
    "BadTopic": Reason(
        400, "there is no such app", GIVES_UP, "check the bundle id in the settings"
    ),
    "MissingTopic": Reason(400, "the push names no app", GIVES_UP, _REPORT),
    "BadCertificate": Reason(
        403, "the certificate is not Apple's", SELDOM, "make a new VoIP certificate"
    ),
    "BadCertificateEnvironment": Reason(
        403,
        "the certificate is for the other environment",
        SELDOM,
        "use a key (p8), or a certificate for both environments",
    ),
    "BadEnvironmentKeyInToken": Reason(
        403,
        "the key is for the other environment",
        SELDOM,
        "make a key for Sandbox & Production, or register the device for the key's environment",
        ("BadEnvironmentKeyInToken", "BadEnvironmentKeyIdInToken"),
    ),
    "InvalidProviderToken": Reason(403, "the key's signature is not good", SELDOM, _CHECK_KEY),
    "ExpiredProviderToken": Reason(
        403,
        "the relay's token is over an hour old, as the clocks say",
        SELDOM,
        "set the relay's clock by NTP: `timedatectl set-ntp true`",
    ),
    "MissingProviderToken": Reason(
        403, "neither key nor certificate was shown", SELDOM, _CHECK_KEY
    ),
    "UnrelatedKeyIdInToken": Reason(403, "the key belongs to another team", SELDOM, _CHECK_KEY),
    "Forbidden": Reason(403, "the key may not do this", SELDOM, _CHECK_KEY),
    "Unregistered": Reason(
        410, "the app was removed from this phone", REMOVES, f"install it again, then {_NEW_TOKEN}"
    ),
    "ExpiredToken": Reason(410, "the phone has a new token by now", REMOVES, _NEW_TOKEN),
    "PayloadTooLarge": Reason(413, "the push is over 5120 bytes", GIVES_UP, _REPORT),
    "TooManyProviderTokenUpdates": Reason(
        429,
        "the relay's token was made anew too often",
        AGAIN,
        "stop restarting the relay, and wait 20 minutes",
    ),
    "TooManyRequests": Reason(429, "too many pushes to this phone", AGAIN, "call it less often"),
    "InternalServerError": Reason(500, "Apple failed", AGAIN, _WAIT),
    "ServiceUnavailable": Reason(503, "Apple is overloaded", AGAIN, _WAIT),
    "Shutdown": Reason(503, "Apple's server is going down", AGAIN, _WAIT),
}

_CHECK_ACCOUNT = (
    "check that credentials_file is this Firebase project's, then run `bellwire doctor`"
)

FCM: Mapping[str, Reason] = {
    "NOT_FOUND": Reason(
        404, "there is no such project", SELDOM, "check project_id in the settings", ("project_id",)
    ),
    "UNREGISTERED": Reason(
        404,
        "the app was removed from this phone, or not opened for 270 days",
        REMOVES,
        f"install it again, then {_NEW_TOKEN}",
        ("UNREGISTERED", "NOT_FOUND"),
    ),
    "SENDER_ID_MISMATCH": Reason(
        403,
        "the token is of another Firebase project",
        REMOVES,
        "build the app with the google-services.json of the project in the settings",
        ("SENDER_ID_MISMATCH", "SenderId"),
    ),
    "THIRD_PARTY_AUTH_ERROR": Reason(
        401,
        "a token of an iOS app, which Google would have to pass to Apple",
        SELDOM,
        "register an iPhone on the channel apns, not on fcm",
        ("THIRD_PARTY_AUTH_ERROR", "APNS"),
    ),
    "INVALID_ARGUMENT": Reason(
        400, "a token that is none, or a push that Google does not read", GIVES_UP, _NEW_TOKEN
    ),
    "UNAUTHENTICATED": Reason(401, "Google does not know the relay", SELDOM, _CHECK_ACCOUNT),
    "PERMISSION_DENIED": Reason(
        403,
        "the service account may not send messages",
        SELDOM,
        "give it the role Firebase Cloud Messaging API Admin, and enable that API",
    ),
    "QUOTA_EXCEEDED": Reason(
        429,
        "too many pushes",
        AGAIN,
        "ask Google for a higher quota",
        ("QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED"),
    ),
    "INTERNAL": Reason(500, "Google failed", AGAIN, _WAIT_GOOGLE),
    "UNAVAILABLE": Reason(503, "Google is overloaded", AGAIN, _WAIT_GOOGLE),
    "invalid_grant": Reason(
        400,
        "no access token: the key was revoked, or the relay's clock is wrong",
        SELDOM,
        "set the clock by NTP; else make a new key for the service account",
    ),
}
"""The first that is said counts. The canonical codes of Google's APIs, which firebase-admin gives,
are said where FCM's own are not."""

REASONS: Mapping[str, Mapping[str, Reason]] = {"apns": APNS, "fcm": FCM}


def find_reason(kind: str, detail: str) -> Reason | None:
    """The reason that what is known of a delivery names, if it names one."""
    said = set(re.findall(r"\w+", detail))
    return next(
        (
            reason
            for name, reason in REASONS.get(kind, {}).items()
            if not said.isdisjoint(reason.words or (name,))
        ),
        None,
    )

"""What an API key may do. Which routes each scope opens, the routes themselves say: docs/http.md has
the table that is made of them."""

from collections.abc import Collection
from enum import StrEnum


class Scope(StrEnum):
    """A part of what a server may do."""

    CALLS = "calls"
    DEVICES = "devices"
    GROUPS = "groups"
    TOKENS = "tokens"
    WEBHOOKS = "webhooks"
    DOORS = "doors"
    FLEET = "fleet"
    AUDIT = "audit"
    METRICS = "metrics"
    ADMIN = "admin"

    def is_among(self, held: Collection["Scope"]) -> bool:
        """Whether a key that holds these scopes may do what this one opens."""
        return self in held or Scope.ADMIN in held


SCOPE_MEANINGS: dict[Scope, str] = {
    Scope.CALLS: "make, read and move calls, as anybody; be told ICE servers; read any device's stream",
    Scope.DEVICES: "register, read and remove devices: who holds it can be any device, and so anybody",
    Scope.GROUPS: "write and read groups",
    Scope.TOKENS: "issue access tokens for anybody, and revoke them: who holds it can be anybody",
    Scope.WEBHOOKS: "look at webhooks, test them, and have events sent again",
    Scope.DOORS: "nothing yet: kept for a door's log",
    Scope.FLEET: "nothing yet: kept for the fleet's settings",
    Scope.AUDIT: "nothing yet: kept for the audit log",
    Scope.METRICS: "read each device's metrics",
    Scope.ADMIN: "everything, and it alone makes and revokes API keys",
}
"""In words, for documents and for `bellwire keys`."""

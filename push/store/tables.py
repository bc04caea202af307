"""The tables. A call's truth is its `document`, what `signaling.calls.rules` returned; the other columns
of its row exist to be searched. Times are Unix milliseconds (`to_ms`). `migrate` brings a database to
them, with Alembic.
"""

from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Number = BigInteger().with_variant(Integer, "sqlite")

calls = Table(
    "calls",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("call_sid", String(34), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("deadline_ms", BigInteger, index=True, comment="when time next moves the call"),
    Column("document", Text, nullable=False),
    # Those that go on are few among many, and asked for most.
    Index(
        "ix_calls_live",
        "number",
        sqlite_where=text("state <> 'ended'"),
        postgresql_where=text("state <> 'ended'"),
    ),
    sqlite_autoincrement=True,
)

call_users = Table(
    "call_users",
    metadata,
    Column("identity", String(128), primary_key=True),
    Column(
        "call_number", ForeignKey("calls.number", ondelete="CASCADE"), primary_key=True, index=True
    ),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("identity", String(128), nullable=False, index=True),
    Column("registered_at_ms", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
)

connections = Table(
    "connections",
    metadata,
    Column("device_id", ForeignKey("devices.device_id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("connection", String(32), nullable=False, comment="which one; a newer replaces it"),
    Column("relay", String(32), nullable=False, comment="who holds it, empty where nobody does"),
    Column("online", Boolean, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
)

channels = Table(
    "channels",
    metadata,
    Column("device_id", ForeignKey("devices.device_id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("app", String(256), primary_key=True, server_default=""),
    Column("environment", String(16)),
    Column("token", Text),
    Column("registered_at_ms", BigInteger, nullable=False, server_default="0"),
    Index(None, "token", "kind", "app", unique=True),
)

outbox = Table(
    "outbox",
    metadata,
    Column("delivery_id", _Number, primary_key=True, autoincrement=True),
    Column("event_id", String(80), nullable=False),
    Column("call_sid", String(34), nullable=False, server_default=""),
    Column(
        "device_id",
        ForeignKey("devices.device_id", ondelete="CASCADE"),
        comment="none for a webhook",
    ),
    Column("kind", String(16), nullable=False),
    Column("app", String(256), nullable=False, server_default="", comment="or the webhook's name"),
    Column("payload", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("due_ms", BigInteger, nullable=False, comment="when to try next, or the lease's end"),
    Column("reason", Text, comment="why the last attempt failed"),
    Column("tries", Text, comment="the attempts that failed, as JSON; a relay of before adds none"),
    UniqueConstraint("event_id", "device_id", "kind", "app"),
    Index(None, "due_ms"),
    Index(None, "device_id"),
    sqlite_autoincrement=True,
)

delivery_results = Table(
    "delivery_results",
    metadata,
    Column("event_id", String(80), primary_key=True),
    Column("device_id", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("app", String(256), primary_key=True),
    Column("call_sid", String(34), nullable=False, index=True),
    Column(
        "result",
        String(16),
        comment="sent, refused or expired; none where none is known yet",
    ),
    Column("detail", Text, nullable=False, server_default=""),
    Column("tries", Text, comment="the attempts before the last, as JSON"),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("received_at_ms", BigInteger, comment="when the device confirmed, naming this channel"),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("event_id", String(80), nullable=False, unique=True),
    Column("event", String(64), nullable=False),
    Column("call_sid", String(34), nullable=False, index=True, comment="empty where about none"),
    Column("at_ms", BigInteger, nullable=False, index=True),
    Column("document", Text, nullable=False, comment="the body that is sent"),
    sqlite_autoincrement=True,
)

device_events = Table(
    "device_events",
    metadata,
    Column("device_id", ForeignKey("devices.device_id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, comment="in the order of the device's events"),
    Column("event_id", String(80), nullable=False),
    Column("document", Text, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False, index=True),
    UniqueConstraint("event_id", "device_id"),
)

groups = Table(
    "groups",
    metadata,
    Column("name", String(64), primary_key=True),
)

group_members = Table(
    "group_members",
    metadata,
    Column("name", ForeignKey("groups.name", ondelete="CASCADE"), primary_key=True),
    Column("identity", String(128), primary_key=True),
    Column("position", Integer, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("call_number", ForeignKey("calls.number", ondelete="CASCADE"), primary_key=True),
    Column("identity", String(128), primary_key=True),
    Column("device_id", String(64), primary_key=True, comment="empty where a server speaks"),
    Column("score", Integer),
    Column("issue", String(32)),
    Column("at_ms", BigInteger, nullable=False),
)

insights = Table(
    "insights",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("call_sid", String(34), nullable=False),
    Column("identity", String(128), nullable=False),
    Column("device_id", String(64), nullable=False),
    Column("at_ms", BigInteger, nullable=False, index=True, comment="when it was heard"),
    Column("fingerprint", String(32), nullable=False, comment="of the document: each is kept once"),
    Column("document", Text, nullable=False, comment="what the device said"),
    UniqueConstraint("call_sid", "device_id", "fingerprint"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("actor", String(160), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("call_sid", String(34), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_hash", String(64), primary_key=True),
    Column("created_at_ms", BigInteger, nullable=False),
    # All that follows may be null: the version before wrote none of it.
    Column("name", String(64)),
    Column("scopes", Text, comment="none: a key from before"),
    Column("expires_at_ms", BigInteger),
)

key_uses = Table(
    "key_uses",
    metadata,
    Column("key_hash", String(64), primary_key=True),
    Column("used_at_ms", BigInteger, nullable=False),
)

revoked_keys = Table(
    "revoked_keys",
    metadata,
    Column("key_hash", String(64), primary_key=True),
    Column("revoked_at_ms", BigInteger, nullable=False),
)

access = Table(
    "access",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False, comment="1: one row"),
    Column("revision", BigInteger, nullable=False, comment="of keys and revocations"),
)

revocations = Table(
    "revocations",
    metadata,
    Column("kind", String(16), primary_key=True, comment="identity, device, token"),
    Column("subject", String(128), primary_key=True, comment="a token's is its jti"),
    Column("revision", BigInteger, nullable=False, index=True, comment="of `access`, when it came"),
    Column("at_ms", BigInteger, nullable=False, index=True),
)

token_devices = Table(
    "token_devices",
    metadata,
    Column("jti", String(64), primary_key=True),
    Column(
        "device_id",
        ForeignKey("devices.device_id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
    Column("expires_at_ms", BigInteger, nullable=False, index=True),
)

fleet_layers = Table(
    "fleet_layers",
    metadata,
    Column("layer", String(80), primary_key=True, comment="default, group/NAME, ..."),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False),
    Column("document", Text, nullable=False, comment="as it was retained"),
    Column("stored_at_ms", BigInteger, nullable=False),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", String(64), primary_key=True),
    Column("private_key", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)


def to_ms(moment: datetime) -> int:
    """A moment as Unix milliseconds."""
    return round(moment.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """Unix milliseconds as a moment in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


_LOCK = 0x62656C6C
"""Of PostgreSQL's advisory locks, the one that relays take to migrate one after the other."""


def migrate(engine: Engine) -> None:
    """Runs the migrations that the database lacks. In PostgreSQL that is one transaction, which holds the
    lock: a session's own would be left behind, or be another's, where a pooler hands sessions around.

    A database that a relay of a later version has brought further is used as it is: what such a version adds
    leaves alone what is there, so that relays can be upgraded one after the other, and one of before may
    start again meanwhile."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect() as connection:
        configuration.attributes["connection"] = connection
        if engine.dialect.name != "postgresql":
            command.upgrade(configuration, "head")
            return
        with connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            if not _is_of_a_later_version(connection, configuration):
                command.upgrade(configuration, "head")


def _is_of_a_later_version(connection: Connection, configuration: Config) -> bool:
    known = {
        script.revision for script in ScriptDirectory.from_config(configuration).walk_revisions()
    }
    revision = MigrationContext.configure(connection).get_current_revision()
    return revision is not None and revision not in known

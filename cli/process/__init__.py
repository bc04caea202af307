"""A `bellwire` process and those it starts: logs, stopping, systemd, its core, a relay as a child."""

"""A `bellwire` process and those it starts: logs, stopping, systemd, a relay as a child. No command."""

"""The `bellwire` command: one module or room a command. It may use everything; nothing uses it."""

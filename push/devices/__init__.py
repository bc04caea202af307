"""Devices in the relay: registration, presence, live connections and what they ask, their rate limits."""

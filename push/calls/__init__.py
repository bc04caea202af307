"""Calls in the relay: commands to rules to store, groups, rooms, rate limits, deadlines. No HTTP,
no channel."""

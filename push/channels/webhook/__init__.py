"""Webhooks: targets, signatures, connections to addresses that were checked."""

"""Layers of settings: how they are merged, kept and written, rollouts paused. No MQTT."""

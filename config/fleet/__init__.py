"""Layers of settings: what they may say, how they are merged, kept and written. No MQTT."""

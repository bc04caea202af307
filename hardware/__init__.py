"""What touches the Raspberry Pi: the panel on its pins, and the sound card. Knows nothing of calls."""

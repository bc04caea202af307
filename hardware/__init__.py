"""What touches the Raspberry Pi: the panel and its parts, and the sound. Knows nothing of calls."""

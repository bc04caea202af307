"""libwebrtc behind an interface of our own: connections, tracks, statistics. Knows nothing of calls."""

"""What a station does by itself: rings, answers, dials, redials, shows its state. Calls are
`agent/calls`."""

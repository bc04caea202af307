"""The relay: takes call invites, settles them by `signaling.calls.rules`, and carries them to devices."""

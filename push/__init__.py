"""The relay: takes call invites, settles them by `signaling.rules`, and carries them to devices."""

"""Settings of one device: panel, audio, behaviour, and the file that holds them. No fleet."""

"""What the relay keeps: one transaction per command, on SQLite."""

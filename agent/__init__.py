"""The agent on the Pi: what a device says and hears, and what it does when somebody calls or presses."""

"""What stands on GPIO pins: ringer, lights, door, buttons, keypad. Knows nothing of calls."""

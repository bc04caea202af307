"""What stands on GPIO pins: buttons, keypad, ringer, light, door, real or simulated. No calls."""

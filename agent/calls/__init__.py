"""Calls as this device has them: Device, CallInvite, Call, and what they say to the relay. No
pins, no sound card."""

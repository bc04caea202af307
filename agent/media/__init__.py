"""Sound between this device and the others of a call, over WebRTC."""

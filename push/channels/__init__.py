"""The ways to reach a device: one file each, one interface."""

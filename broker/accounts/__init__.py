"""Credentials and rights at the broker. The only room, with `embedded`, that knows which broker it is."""

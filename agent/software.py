"""Which version of Bellwire this agent is."""

from importlib.metadata import version

SOFTWARE = version("bellwire")
"""Read once: each look searches the whole import path, and importlib keeps what it saw there."""

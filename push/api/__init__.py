"""The relay over HTTP, version 1."""

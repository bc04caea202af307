"""Connections: who may hold one, and how they are read within bounds. No route."""

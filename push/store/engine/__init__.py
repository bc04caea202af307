"""Transactions on SQLite and PostgreSQL: opening, group commit, the unit of work. No rule of calls."""

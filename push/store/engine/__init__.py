"""The database: opening, migrations, transactions on SQLite and PostgreSQL. Knows no row."""

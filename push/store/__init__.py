"""What the relay keeps, on SQLite or PostgreSQL: tables and statements. No rule of calls, no route."""

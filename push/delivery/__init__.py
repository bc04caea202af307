"""What is owed to devices and backends, and how it gets there: the outbox, webhooks' events, dead tokens."""

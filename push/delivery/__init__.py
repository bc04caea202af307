"""What is owed to devices and backends, and how it gets there: deliveries, outbox, streams, dead tokens."""

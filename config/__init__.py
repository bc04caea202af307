"""Settings of relay and agent, and the layers by which a fleet is configured."""

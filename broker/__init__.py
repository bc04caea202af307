"""The MQTT 5 broker: holding a session with it, running one as a child, giving devices their rights."""

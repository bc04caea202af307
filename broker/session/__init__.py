"""MQTT 5 sessions: connect, resume, publish, hear. Knows no topic of Bellwire's."""

"""The ways to reach a device or a backend: MQTT, streams, APNs, FCM, webhooks; one interface."""

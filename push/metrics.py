"""What the relay counts, for Prometheus. One registry per relay, so that tests share nothing."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


_RECEIVED_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 30.0, 60.0)


class Metrics:
    """The relay's counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bellwire_http_requests_total",
            "HTTP requests by route and status",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "bellwire_http_request_seconds",
            "HTTP request duration by route",
            ("method", "route"),
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.device_requests = Counter(
            "bellwire_device_requests_total",
            "Requests of devices over MQTT and WebSocket by operation and status",
            ("operation", "status"),
            registry=self.registry,
        )
        self.calls_created = Counter(
            "bellwire_calls_created_total", "Calls made", registry=self.registry
        )
        self.refused = Counter(
            "bellwire_refused_total",
            "What was refused since it is too much, or not for who asks, by reason",
            ("reason",),
            registry=self.registry,
        )
        self.user_states = Counter(
            "bellwire_call_user_states_total",
            "Changes of a user's state, by new state",
            ("state",),
            registry=self.registry,
        )
        self.deliveries = Counter(
            "bellwire_deliveries_total",
            "Attempts to deliver an event, by channel and result",
            ("channel", "result"),
            registry=self.registry,
        )
        self.undelivered = Counter(
            "bellwire_undelivered_total",
            "Deliveries to devices that never arrived, by channel and result: refused, expired, failed",
            ("channel", "result"),
            registry=self.registry,
        )
        self.delivery_seconds = Histogram(
            "bellwire_delivery_seconds",
            "Time until a channel took an event over",
            ("channel",),
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.push_app_fault = Gauge(
            "bellwire_push_app_fault",
            "1 while a push service refuses an app's credentials, until its next success",
            ("channel", "app"),
            registry=self.registry,
        )
        self.invite_received_seconds = Histogram(
            "bellwire_invite_received_seconds",
            "Time from an invite until a device first confirmed it, by the channel it came over",
            ("channel",),
            buckets=_RECEIVED_S,
            registry=self.registry,
        )
        self.tokens_removed = Counter(
            "bellwire_tokens_removed_total",
            "Push tokens removed since they were dead, by channel and reason",
            ("channel", "reason"),
            registry=self.registry,
        )
        self.voice_url = Counter(
            "bellwire_voice_url_total",
            "Calls of which the voice URL was asked whom to ring, by what came of it",
            ("result",),
            registry=self.registry,
        )
        self.ringing = Gauge(
            "bellwire_calls_with_open_invitations",
            "Calls that somebody has yet to answer",
            registry=self.registry,
        )
        self.broker_connected = Gauge(
            "bellwire_broker_connected", "1 while the broker is connected", registry=self.registry
        )
        self.disk_free = Gauge(
            "bellwire_data_disk_free_bytes",
            "What is free of the disk that holds the relay's data folder",
            registry=self.registry,
        )

    def count_refused(self, reason: str) -> None:
        """Counts one refusal. Safe from any thread."""
        self.refused.labels(reason).inc()

    def count_voice_url(self, result: str) -> None:
        """Counts what came of asking the voice URL."""
        self.voice_url.labels(result).inc()

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

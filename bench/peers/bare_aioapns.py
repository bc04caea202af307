"""aioapns and nothing around it, in a process of its own: pushes for a while, so many in flight, and
prints how many and how long each took, as JSON."""

import asyncio
import json
import logging
import ssl
import sys
import time
from pathlib import Path

import uvloop
from aioapns import APNs, NotificationRequest, PushType
from aioapns.connection import APNsTLSClientProtocol

_CONNECTIONS = 4
"""As many as the relay has of itself."""

_TOKEN = "0a" * 32


async def push(port: int, ca_file: str, key: str, seconds: float, lanes: int) -> list[float]:
    """Milliseconds of each push that was acknowledged."""

    class ToBench(APNsTLSClientProtocol):
        APNS_SERVER = "127.0.0.1"
        APNS_PORT = port

    tls = ssl.create_default_context(cafile=ca_file)
    tls.set_alpn_protocols(["h2"])
    client = APNs(
        key=key,
        key_id="KEY4567890",
        team_id="TEAM567890",
        topic="com.example.bench.voip",
        ssl_context=tls,
        max_connections=_CONNECTIONS,
    )
    client.pool.protocol_class = ToBench
    body = {"aps": {}, "twi_message_type": "twilio.voice.call", "fill": "x" * 850}
    took_ms: list[float] = []
    until = time.perf_counter() + seconds

    async def lane(number: int) -> None:
        while (started := time.perf_counter()) < until:
            request = NotificationRequest(
                _TOKEN,
                body,
                time_to_live=60,
                priority=10,
                collapse_key=f"bare-{number}",
                push_type=PushType.VOIP,
            )
            result = await client.send_notification(request)
            if not result.is_successful:
                raise SystemExit(f"bare aioapns: {result.status} {result.description}")
            took_ms.append((time.perf_counter() - started) * 1000)

    async with asyncio.TaskGroup() as tasks:
        for number in range(lanes):
            tasks.create_task(lane(number))
    client.pool.close()
    return took_ms


def main() -> None:
    """PORT CA_FILE KEY_FILE SECONDS LANES."""
    logging.disable()
    port, ca_file, key_file, seconds, lanes = sys.argv[1:]
    took_ms = uvloop.run(
        push(int(port), ca_file, Path(key_file).read_text(), float(seconds), int(lanes))
    )
    print(json.dumps(took_ms))


if __name__ == "__main__":
    main()

"""What browsers are shown: answers and refusals to pages of the origins in the settings (CORS), and the API's
reference without the internet."""

from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page
from pydantic import ValidationError

from bellwire.config.relay import RelaySettings
from tests.chromium import chromium
from tests.conftest import PATIENCE_S
from tests.push.support import Running, fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "https://app.example.org"


class _Empty(BaseHTTPRequestHandler):
    """A site with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>page</title>")

    def log_message(self, *_: Any) -> None:  # noqa: ANN401
        """Says nothing."""


@pytest.fixture(scope="module")
def site() -> Any:  # noqa: ANN401 - a generator of the origin
    """The origin of a page that may ask the relay."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def settings(site: str) -> dict[str, str]:
    return {
        "BELLWIRE_CORS_ORIGINS": f'["{site}", "{PAGE}"]',
        "BELLWIRE_MAX_BODY_BYTES": "2048",
        "BELLWIRE_DEVICE_REQUESTS_PER_S": "1",
    }


async def preflight(
    running: Running, path: str, method: str, headers: str, origin: str = PAGE
) -> httpx.Response:
    """What a browser asks before it asks."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }
    async with running.stranger() as browser:
        return await browser.options(path, headers=asked)


@pytest.mark.parametrize("path", ["/v1/calls", f"/v1/calls/CA{'0' * 32}/accept", "/v1/ice-servers"])
async def test_a_page_of_an_origin_in_the_settings_may_ask(running: Running, path: str) -> None:
    answer = await preflight(running, path, "POST", "authorization,content-type,idempotency-key")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ("authorization", "https://app.example.org.evil.test"),
        ("authorization", "http://app.example.org"),
        ("authorization", "https://app.example.org:8443"),
        ("authorization", "null"),
        ("x-api-key", PAGE),
    ],
)
async def test_other_origins_may_not_and_no_page_may_send_an_api_key(
    running: Running, headers: str, origin: str
) -> None:
    answer = await preflight(running, "/v1/calls", "POST", headers, origin)
    assert answer.status_code == 400
    plain = await running.http.get("/v1/calls", headers={"Origin": origin})
    assert plain.status_code == 200
    allowed = plain.headers.get("access-control-allow-origin")
    assert allowed == (PAGE if origin == PAGE else None)


async def test_refusals_before_any_route_can_be_read_by_the_page(running: Running) -> None:
    bob = fresh("bob")
    token = await running.token(bob)
    asked = {"Origin": PAGE}
    async with running.stranger() as browser:
        stranger = await browser.post("/v1/calls", headers=asked, json={"to": ["x"]})
        nowhere = await browser.get("/v1/nowhere", headers=asked)
        too_long = await browser.post("/v1/calls", headers={**asked, **token}, content=b"x" * 4096)
        head = await browser.get("/healthz", headers=asked | {f"x-{n}": "" for n in range(200)})
        flood = await browser.get("/v1/calls", headers={**asked, **token})
        for _ in range(20):
            if flood.status_code == 429:
                break
            flood = await browser.get("/v1/calls", headers={**asked, **token})
    refused = [stranger, nowhere, too_long, flood]
    assert [answer.status_code for answer in refused] == [401, 404, 413, 429]
    for answer in (*refused, head):
        assert answer.headers["access-control-allow-origin"] == PAGE, answer
    assert head.status_code == 431
    assert "retry-after" in flood.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example.org",
        "https://app.example.org/",
        "https://app.example.org/page",
        "https://App.example.org",
        "https://app.example.org:443",
        "app.example.org",
        "null",
    ],
)
async def test_an_origin_is_written_as_browsers_name_it(origin: str) -> None:
    with pytest.raises(ValidationError):
        RelaySettings(cors_origins=(origin,))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page() -> AsyncIterator[Page]:
    async with chromium() as browser:
        yield await browser.new_page()


_ASK = """async ([url, token]) => {
  try {
    const answer = await fetch(url, {
      method: "POST",
      headers: {"Authorization": token, "Content-Type": "application/json"},
      body: JSON.stringify({to: ["nobody-at-all"]}),
    });
    return [answer.status, (await answer.json()).title];
  } catch (error) {
    return [0, String(error)];
  }
}"""


async def test_a_real_browser_reads_answers_and_refusals(
    running: Running, page: Page, site: str
) -> None:
    url = f"{running.relay.access.url}/v1/calls"
    token = (await running.token(fresh("eve")))["Authorization"]
    await page.goto(site)
    assert (await page.evaluate(_ASK, [url, token]))[0] == 404  # nobody to call
    assert (await page.evaluate(_ASK, [url, "Bearer none"]))[0] == 401
    await page.goto(site.replace("127.0.0.1", "localhost"))  # another origin
    assert (await page.evaluate(_ASK, [url, token]))[0] == 0


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_reference_is_shown_without_the_internet(
    running: Running, page: Page, path: str
) -> None:
    asked, stopped = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda r: stopped.append(r.url) if r.failure == "csp" else None)
    answer = await page.goto(f"{running.relay.access.url}{path}")
    assert answer is not None
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    shown = page.get_by_text("/v1/calls/{call_sid}/accept").first
    await shown.wait_for(timeout=PATIENCE_S * 1000, state="attached")
    here = (running.relay.access.url, "data:", "blob:")
    # ReDoc would fetch its maker's logo; the page's own policy does not let it.
    assert [url for url in asked if not url.startswith(here) and url not in stopped] == []

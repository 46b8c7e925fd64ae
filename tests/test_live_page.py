"""The live page in a real browser: an order is placed, and seen to pass the stages."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from tests.serving import command

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(
        shutil.which("chromium") is None,
        reason="no Chromium on the PATH: apt-get install chromium (Playwright brings none here)",
    ),
]

PATIENCE_MS = 30_000


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium's sandbox does not work.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        service = browser.new_context(viewport={"width": 1280, "height": 940})
        service.set_default_timeout(PATIENCE_MS)
        yield service.new_page()
        browser.close()


def test_an_order_is_placed_and_passes_the_stages(servers: stack.Servers, page: Page) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    with command() as (process, url):
        page.goto(url)
        expect(page.locator("#state")).to_have_text("connected")
        run = page.locator("#run").inner_text()

        # 1. Place it: acknowledged with its token.
        page.get_by_label("Customer").fill("zoë")
        page.get_by_role("button", name="Place order").click()
        expect(page.locator("#answer")).to_have_text(
            re.compile(r"202 Accepted: Kafka has it after \d+ ms, as orders-\d-\d+")
        )

        # 2. It moves, marked as ours, and every stage gets its instants.
        expect(page.locator("#scene").get_by_text("yours")).to_be_visible()
        expect(page.locator("#chips")).to_contain_text("accepted")
        expect(page.locator("#chips")).to_contain_text("visible after")
        rows = page.locator("#stages tr")
        expect(rows).to_have_count(5)
        at = [float(rows.nth(n).locator("td").nth(1).inner_text()) for n in range(5)]
        assert at == sorted(at)
        assert at[0] == 0.0 < at[-1]

        # 3. What follows from it: goods are set aside, it is paid and shipped.
        page.get_by_role("button", name="Pay 14.99 €").click()
        expect(page.locator("#chips")).to_contain_text("shipped")
        told = page.locator("#told")
        for event in ("OrderPlaced", "StockReserved", "OrderPaid", "OrderShipped", "StockShipped"):
            expect(told).to_contain_text(event)
        counted = page.locator("#scene tspan[font-weight]")
        assert all(int(counted.nth(n).text_content() or 0) >= 5 for n in range(3))

        # 4. It asked nobody else, and nothing went wrong.
        assert all(one.startswith((url, "data:")) for one in asked), asked
        assert wrong == []
        page.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 130
    broker = KafkaPythonBroker(servers.bootstrap)
    assert [topic for topic in broker.topics() if run in topic] == [], "its own run is taken away"
    broker.close()

"""The live page in a real browser: a command is sent, and seen to pass the stages."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from labkit import stack
from labkit.adapters.kafka_python import KafkaPythonBroker
from labkit.lab import Lab
from tests.serving import Below, command, serving

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


@pytest.fixture
def wrong(page: Page) -> list[str]:
    """What went wrong in the page."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda said: found.append(said.text) if said.type == "error" else None)
    return found


def send(page: Page, command: str, **fields: str) -> None:
    """Choose a command, fill in its form, send it."""
    page.locator("#command").select_option(label=command)
    for name, value in fields.items():
        page.get_by_label(name.replace("_", " "), exact=True).fill(value)
    page.get_by_role("button", name="Send", exact=True).click()


def acknowledged(page: Page, service: str) -> None:
    words = rf"202 Accepted: Kafka has it after \d+ ms, as {service}-\d-\d+"
    expect(page.locator("#answer")).to_have_text(re.compile(words))


def test_an_order_is_placed_and_passes_the_stages(
    servers: stack.Servers, page: Page, wrong: list[str]
) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with command() as (process, url):
        page.goto(url)
        expect(page.locator("#state")).to_have_text("connected")
        run = page.locator("#run").inner_text()

        # 1. Goods come in, and an order is placed: acknowledged with its token.
        send(page, "ReceiveStock", product_id="cd", quantity="100")
        acknowledged(page, "inventory")
        expect(page.locator("#document")).to_contain_text("on_hand")
        send(page, "PlaceOrder", customer_id="zoë")
        acknowledged(page, "orders")

        # 2. It moves, marked as ours, and every stage gets its instants.
        expect(page.locator("#scene").get_by_text("yours").last).to_be_visible()
        expect(page.locator("#chips")).to_contain_text("accepted")
        expect(page.locator("#chips")).to_contain_text("visible after")
        expect(page.locator("#document")).to_contain_text("zoë")
        rows = page.locator("#stages tr")
        expect(rows).to_have_count(5)
        at = [float(rows.nth(n).locator("td").nth(1).inner_text()) for n in range(5)]
        assert at == sorted(at)
        assert at[0] == 0.0 < at[-1]

        # 3. What can be sent to it next is one click away: its form knows the id and the price.
        page.locator("#next").get_by_role("button", name="PayOrder").click()
        expect(page.get_by_label("order id")).not_to_have_value("")
        expect(page.get_by_label("cents")).to_have_value("1499")
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#document")).to_contain_text("shipped")
        told = page.locator("#told")
        for event in ("OrderPlaced", "StockReserved", "OrderPaid", "OrderShipped", "StockShipped"):
            expect(told).to_contain_text(event)
        counted = page.locator("#scene tspan[font-weight]")
        assert all(int(counted.nth(n).text_content() or 0) >= 5 for n in range(3))
        picture(page, "orders")

        # 4. It asked nobody else, and nothing went wrong.
        assert all(one.startswith((url, "data:")) for one in asked), asked
        assert wrong == []
        page.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 143
    broker = KafkaPythonBroker(servers.bootstrap)
    assert [topic for topic in broker.topics() if run in topic] == [], "its own run is taken away"
    broker.close()


def test_it_is_made_for_any_service_below_any_prefix(
    servers: stack.Servers, page: Page, wrong: list[str]
) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with Lab(services=["tests.desk_for_api:DESK"], start=False, partitions=2) as lab:
        lab.start()
        with serving(lab, Below) as served:
            home = f"{served.url}{Below.PREFIX}/"
            page.goto(home)
            expect(page.locator("#state")).to_have_text("connected")
            expect(page.locator("#legend")).to_contain_text("desk")
            options = page.locator("#command").locator("option")
            expect(options).to_have_text(["OpenTicket", "CloseTicket", "ForgetTicket"])

            send(page, "OpenTicket", id="..", customer="ann", contact='{"mail": "a@b"}')
            acknowledged(page, "desk")
            expect(page.locator("#chips")).to_contain_text("visible after")
            expect(page.locator("#document")).to_contain_text('{"mail":"a@b"}')
            expect(page.locator("#told")).to_contain_text("TicketOpened")

            page.locator("#next").get_by_role("button", name="CloseTicket").click()
            expect(page.get_by_label("id", exact=True)).to_have_value("..")
            page.get_by_role("button", name="Send", exact=True).click()
            expect(page.locator("#told")).to_contain_text("TicketClosed")
            expect(page.locator("#document")).to_contain_text("closedtrue")
            page.get_by_role("button", name="Send", exact=True).click()
            expect(page.locator("#told")).to_contain_text("'..' is not open")

            send(page, "OpenTicket", id="many-*", customer="ann", minutes="1.5")
            assert page.locator("#fields input:invalid").count() == 1, "checked in the form"
            page.get_by_label("minutes").fill("1")
            page.get_by_role("button", name="Send it 100 times").click()
            expect(page.locator("#answer")).to_contain_text("100 times OpenTicket")
            picture(page, "desk")

            page.get_by_role("link", name="API").click()
            expect(page.locator(".opblock-summary-path").first).to_contain_text("/health/live")
            page.locator("#operations-desk-count").get_by_role("button").first.click()
            page.get_by_role("button", name="Try it out").click()
            page.get_by_role("button", name="Execute").click()
            expect(page.locator(".live-responses-table")).to_contain_text('"value":')
            picture(page, "docs")
            assert all(one.startswith((home, "data:", "blob:")) for one in asked), asked
            assert wrong == []
            page.close()
        lab.drop()


def picture(page: Page, name: str) -> None:
    """For those who want to look: LABKIT_PICTURES is a folder."""
    if folder := os.environ.get("LABKIT_PICTURES"):
        page.screenshot(path=f"{folder}/live-{name}.png", full_page=True)

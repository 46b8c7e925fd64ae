"""The API on real servers, over a real socket: the main flows, streams, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from labkit import stack
from labkit.lab import Lab
from tests.serving import Served, command, serving
from tests.test_api import events, located, new_order, problem
from tests.test_cli import labkit, refused

pytestmark = pytest.mark.servers

WAIT = {"Prefer": "wait=20"}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def lab(servers: stack.Servers) -> Iterator[Lab]:
    with Lab(services=["orders", "inventory"], processes=["fulfilment"], start=False) as made:
        made.start()
        yield made
        made.drop()


@pytest.fixture(scope="module")
def served(lab: Lab) -> Iterator[Served]:
    with serving(lab) as found:
        yield found


@pytest.fixture
def api(served: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.url, timeout=PATIENCE) as client:
        yield client


def test_an_order_from_its_placing_to_its_shipment(api: httpx2.Client) -> None:
    """By way of the process that sets its goods aside."""
    api.post("/stock/cd/receipts", json={"quantity": 10}, headers=WAIT)
    made = api.post("/orders", json=new_order(order_id="o1", product_id="cd"), headers=WAIT)
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    order = api.get("/orders/o1", params={"version": 1})
    assert order.headers["etag"] == '"1"'
    paid = api.post("/orders/o1/payment", json={"cents": 500}, headers=WAIT | {"If-Match": '"1"'})
    assert (paid.status_code, paid.headers["etag"]) == (200, '"2"')
    shipped = api.get("/orders/o1", params={"version": 3, "timeout": 20})
    while shipped.status_code == 404:  # the process has not sent its command yet
        shipped = api.get("/orders/o1", params={"version": 3, "timeout": 20})
    assert (shipped.json()["status"], shipped.headers["etag"]) == ("shipped", '"3"')
    fresh = {"freshness": "linearizable", "timeout": "20"}
    whole = api.get("/orders/o1/fulfilment", params=fresh).json()
    assert whole["order"]["status"] == "shipped"
    assert [held["product"] for held in whole["held"]] == ["cd"]
    old = api.post("/orders/o1/cancellation", json={}, headers=WAIT | {"If-Match": '"2"'})
    problem(old, 412, "precondition")
    problem(api.post("/orders/o1/cancellation", json={}, headers=WAIT), 409, "refused")


def test_a_token_is_enough_to_read_what_was_written(api: httpx2.Client) -> None:
    sent = api.post("/orders", json=new_order())
    assert sent.status_code == 202
    token = sent.headers["labkit-token"]
    shown = api.get(sent.json()["resource"], params={"token": token, "timeout": 20})
    assert shown.status_code == 200
    status = api.get(located(sent)).json()
    assert (status["status"], status["command_id"]) == ("accepted", sent.json()["command_id"])


def test_a_slash_in_disguise_is_no_slash(api: httpx2.Client) -> None:
    made = api.post("/orders", json=new_order(order_id="%2F"), headers=WAIT)
    assert located(made) == "/orders/%252F"
    found = api.get("/orders/%252F", params={"version": 1, "timeout": 20})
    assert found.json()["id"] == "%2F"


def test_many_wait_at_once_each_for_its_own_answer(api: httpx2.Client) -> None:
    def place(n: int) -> tuple[int, str]:
        body = new_order(order_id=f"m{n}", product_id="none")
        answer = api.post("/orders", json=body, headers=WAIT)
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(place, range(120)))
    assert answers == [(201, f"m{n}") for n in range(120)]


def read(
    url: str,
    path: str,
    headers: dict[str, str],
    enough: Callable[[list[dict[str, str]]], object] = lambda _: False,
) -> list[dict[str, str]]:
    """The events of a stream until there are enough of them or it ends."""
    text = ""
    with httpx2.Client(base_url=url, timeout=PATIENCE) as client:  # noqa: SIM117
        with client.stream("GET", path, headers=headers) as answer:
            for part in answer.iter_text():
                text += part
                if text.endswith("\n\n") and enough(events(text)):
                    break
    return events(text)


def test_updates_come_in_order_and_go_on_where_they_ended(
    served: Served, api: httpx2.Client
) -> None:
    with ThreadPoolExecutor(1) as pool:
        path = "/orders/u1/updates"
        following = pool.submit(
            read, served.url, path, {}, lambda found: '"cancelled"' in str(found)
        )
        api.post("/orders", json=new_order(order_id="u1", cents=10**11), headers=WAIT)
        api.post("/orders/u1/cancellation", json={}, headers=WAIT)
        found = following.result(PATIENCE)
    versions = [int(event["id"]) for event in found]
    assert versions == sorted(set(versions))
    assert versions[-1] == 2
    assert json.loads(found[-1]["data"])["cents"] == 10**11
    path += "?seconds=0.5"
    assert read(served.url, path, {"Last-Event-ID": "2"}) == []
    assert [e["id"] for e in read(served.url, path, {"Last-Event-ID": "1"})] == ["2"]


def stages_of_an_order(found: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """The three stages of the first new order that was seen in all of them; each comes by a way of
    its own, so in any order."""
    seen: dict[str, dict[str, dict[str, Any]]] = {}
    for event in found:
        for move in json.loads(event["data"]).get("moved", ()):
            seen.setdefault(move["token"], {})[move["stage"]] = move
    whole = (s for s in seen.values() if s.keys() >= {"command", "commit", "view"})
    return next((s for s in whole if s["command"]["what"] == "PlaceOrder"), {})


def test_the_live_stream_shows_every_stage_of_an_order(served: Served, api: httpx2.Client) -> None:
    api.post("/stock/lp/receipts", json={"quantity": 10_000}, headers=WAIT)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read, served.url, "/live", {}, stages_of_an_order)
        number = 0
        while not following.done():
            body = new_order(order_id=f"live-{number}", product_id="lp")
            assert api.post("/orders", json=body, headers=WAIT).status_code == 201
            number += 1
        stages = stages_of_an_order(following.result(PATIENCE))
    commit, view = stages["commit"], stages["view"]
    instants = [commit[name] for name in ("sent", "polled", "decided")]
    instants += [view["fetched"], view["applied"]]
    assert instants == sorted(instants)
    assert stages["command"]["what"] == "PlaceOrder"
    assert commit["what"] == "OrderPlaced"


def test_it_says_how_far_the_workers_are(api: httpx2.Client) -> None:
    ready = api.get("/health/ready").json()
    assert ready["kafka"].startswith("4.")
    assert "process/fulfilment" in ready["lag"]
    assert 'role="handler"' in api.get("/metrics").text


def test_the_end_lets_streams_and_those_who_wait_go(servers: stack.Servers) -> None:
    """Nobody handles the commands of this run, so who waits would wait for long."""
    with Lab(services=["orders"], start=False, partitions=1) as idle:
        with serving(idle) as served, ThreadPoolExecutor(2) as pool:
            api = httpx2.Client(base_url=served.url, timeout=PATIENCE)
            following = pool.submit(read, served.url, "/orders/e1/updates", {})
            waiting = pool.submit(
                api.post, "/orders", json=new_order(), headers={"Prefer": "wait=30"}
            )
            while not idle.topic("orders.commands").size or not following.running():
                time.sleep(0.05)
            assert served.end()
            assert waiting.result(PATIENCE).status_code == 202
            assert [event["id"] for event in following.result(PATIENCE)] == ["0"]
            api.close()
        idle.drop()


@pytest.fixture
def away(home: Path) -> Iterator[None]:
    """Servers that nobody else needs."""
    stack.up("away")
    yield
    stack.down("away", purge=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_servers_may_go_and_come_back(away: None) -> None:
    """While they are away: 503 and when to try again. Afterwards: no new start is needed."""
    with Lab("away", services=["orders"], start=False, partitions=1) as lab:
        lab.start()
        with serving(lab) as served, httpx2.Client(base_url=served.url, timeout=PATIENCE) as api:
            assert api.post("/orders", json=new_order(), headers=WAIT).status_code == 201
            stack.down("away")
            assert api.get("/health/live").status_code == 200
            for answer in (
                api.get("/health/ready"),
                api.get("/orders/o1"),
                api.get("/orders/o1?freshness=linearizable"),
                api.post("/orders", json=new_order()),
            ):
                problem(answer, 503, "unreachable")
                assert answer.headers["retry-after"] == "2"
            stack.up("away")
            deadline = time.monotonic() + 5 * PATIENCE
            while api.post("/orders", json=new_order(), headers=WAIT).status_code != 201:
                assert time.monotonic() < deadline
            while api.get("/health/ready").status_code != 200:
                assert time.monotonic() < deadline
        lab.drop()


# --- the command line


def test_it_joins_a_run_and_ctrl_c_ends_it(lab: Lab) -> None:
    with command("--run", lab.run) as (process, url):
        body = new_order(order_id="joined")
        assert (
            httpx2.post(f"{url}/orders", json=body, headers=WAIT, timeout=PATIENCE).status_code
            == 201
        )
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert "interrupted" in said
        assert "Traceback" not in said
    assert lab.workers(), "they are not its own"


def test_what_it_cannot_do_is_one_clear_line(home: Path, servers: stack.Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(labkit("api", "--port", port), port, "choose another with --port")
    refused(labkit("api", "--port", "65536"), "65536")
    refused(labkit("api", "--port", "0", "--host", "no.such.host.invalid"), "no.such.host.invalid")
    refused(labkit("api", "--port", "0", "--run", "r0"), "'r0'", "labkit runs")
    refused(labkit("api", "--port", "0", "--client", "pigeon"), "pigeon")

"""The API as its clients meet it: in memory, where every rule of HTTP can be tried quickly."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from labkit.api import backend, create_app, serve
from labkit.api.backend import Backend
from labkit.api.feed import Live, _Tail
from labkit.api.lab_thread import LabThread
from labkit.api.paths import segment
from labkit.api.problems import Problem
from labkit.api.updates import updates
from labkit.errors import Conflict, LabkitError
from labkit.lab import Lab
from labkit.run.settings import DEFAULTS
from labkit.services.bank import OpenAccount
from labkit.services.orders import OrderById
from labkit.write import stream_state

SERVICES = ["orders", "catalog", "inventory", "bank"]
WAIT = {"Prefer": "wait=5"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=SERVICES) as made:
        yield made


@pytest.fixture
def api(lab: Lab) -> Iterator[TestClient]:
    lab.start()
    with TestClient(create_app(lab)) as client:
        yield client


def new_order(**fields: Any) -> dict[str, Any]:
    return {"customer_id": "ann", "quantity": 2, "cents": 500, "day": "1997-01-31"} | fields


def problem(answer: Any, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["type"] == f"/problems/{kind}", found
    assert found["status"] == status
    return found


def located(answer: Any) -> str:
    """The path that its header names, as a client finds it."""
    return urlsplit(urljoin(str(answer.url), answer.headers["location"])).path


def placed(api: TestClient, **fields: Any) -> dict[str, Any]:
    answer = api.post("/orders", json=new_order(**fields), headers=WAIT)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


# --- commands


def test_a_command_is_acknowledged_with_202_and_a_place_to_look(api: TestClient) -> None:
    answer = api.post("/orders", json=new_order())
    assert answer.status_code == 202
    found = answer.json()
    assert located(answer) == f"/commands/{found['token']}"
    assert answer.headers["labkit-token"] == found["token"]
    assert "etag" not in answer.headers
    order = api.get(found["resource"], params={"token": found["token"]})
    assert order.status_code == 200
    status = api.get(located(answer)).json()
    assert (status["status"], status["version"], status["command"]) == ("accepted", 1, "PlaceOrder")
    assert status["resource"] == found["resource"]


def test_the_status_of_a_command_outlives_the_process(lab: Lab) -> None:
    """From the stream's bookkeeping: another process has heard no answer."""
    lab.start()
    with TestClient(create_app(lab)) as api:
        good = placed(api, order_id="o1")["token"]
        twice = api.post("/orders", json=new_order(order_id="o1", cents=1), headers=WAIT)
        bad = twice.json()["token"]
    lab.by_hand("handler", "orders").flush()
    lab.bus._heard.clear()
    with TestClient(create_app(lab)) as another:
        assert another.get(f"/commands/{good}").json()["status"] == "accepted"
        status = another.get(f"/commands/{bad}").json()
        assert (status["status"], status["reason"]) == ("refused", "order 'o1' exists")
        problem(another.get("/commands/orders-0-999"), 404, "not-found")
        problem(another.get("/commands/nonsense"), 422, "invalid")


NOISE = {"noise": b"no command", "half a command": b'{"id":"x","body":{}}', "a tombstone": b""}


@pytest.mark.parametrize("value", NOISE.values(), ids=NOISE)
@pytest.mark.parametrize("heard", [True, False])
def test_the_status_of_what_is_no_command(lab: Lab, value: bytes, heard: bool) -> None:
    lab.start()
    sender = lab.broker.sender()
    partition, offset = sender.send(lab.topic_name("orders.commands"), b"o1", value).result(1)
    with TestClient(create_app(lab)) as api:
        refused = api.post("/orders", json=new_order(order_id="o1"), headers={"Prefer": "wait=1"})
        assert refused.status_code == 202, "it waits behind the noise"
    lab.by_hand("handler", "orders").flush()
    if not heard:
        lab.bus._heard.clear()
    with TestClient(create_app(lab)) as api:
        status = api.get(f"/commands/orders-{partition}-{offset}").json()
        assert (status["status"], status["id"], status["command"]) == ("parked", "o1", "")
        assert "not a message of this schema" in status["reason"]
        waits = api.get(f"/commands/{refused.json()['token']}").json()
        assert waits["status"] == "parked"


def test_the_status_of_what_was_answered_long_ago(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_state, "SEEN_WINDOW", 2)
    lab.start()
    with TestClient(create_app(lab)) as api:
        first = placed(api, order_id="o1")["token"]
        for cents in range(5):
            api.post("/orders/o1/payment", json={"cents": cents}, headers=WAIT)
    lab.by_hand("handler", "orders").flush()
    lab.bus._heard.clear()
    with TestClient(create_app(lab)) as api:
        assert api.get(f"/commands/{first}").json()["status"] == "accepted"


def kinds(of: type[LabkitError] = LabkitError) -> Iterator[type[LabkitError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_error_of_this_package_has_its_answer(lab: Lab) -> None:
    app, every = create_app(lab), {kind.__name__: kind for kind in kinds()}

    @app.get("/stumble/{name}")
    def stumble(name: str) -> None:
        raise every[name]("because")

    with TestClient(app, raise_server_exceptions=False) as api:
        for name in every:
            answer = api.get(f"/stumble/{name}")
            found = problem(answer, answer.status_code, answer.json()["type"].rpartition("/")[2])
            assert (found["status"] < 500) or found["status"] in (503, 504), name
            assert found["detail"] == "because"
            assert ("retry-after" in answer.headers) == (found["status"] == 503), name
    assert len(every) > 15


@pytest.mark.parametrize("trouble", ["a conflict", "not by a majority yet", "for ever"])
def test_an_idempotency_key_that_is_being_claimed(
    api: TestClient, lab: Lab, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "for ever":
        monkeypatch.setattr(backend, "CLAIM_SECONDS", 0.3)
    key = {"Idempotency-Key": "k1", **WAIT}
    order = new_order(order_id="o1")
    assert api.post("/orders", json=order, headers=key).status_code == 201
    real_advance, real_load, tries = lab.store.advance, lab.store.load, list[int]()

    def advance(checkpoints: str, moves: Any, writes: Any) -> None:
        if checkpoints == backend.KEYS_CHECKPOINTS:
            tries.append(1)
            if trouble == "for ever" or (trouble == "a conflict" and len(tries) < 4):
                raise Conflict("another writer was first")
        real_advance(checkpoints, moves, writes)

    def load(collection: str, ids: Any) -> Any:
        early = collection == backend.KEYS and trouble == "not by a majority yet" and len(tries) < 3
        return {} if early else real_load(collection, ids)

    monkeypatch.setattr(lab.store, "advance", advance)
    monkeypatch.setattr(lab.store, "load", load)
    answer = api.post("/orders", json=order, headers=key)
    if trouble == "for ever":
        problem(answer, 503, "busy")
        assert answer.headers["retry-after"]
    else:
        assert answer.status_code == 201
        assert len(tries) >= 3


def test_who_waits_gets_the_version(api: TestClient) -> None:
    answer = api.post("/orders", json=new_order(order_id="o1"), headers=WAIT)
    assert answer.status_code == 201
    assert located(answer) == "/orders/o1"
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["preference-applied"] == "wait=5"
    paid = api.post("/orders/o1/payment", json={"cents": 500}, headers=WAIT)
    assert (paid.status_code, paid.headers["etag"]) == (200, '"2"')
    assert api.get("/orders/o1", params={"version": 2}).json()["payment"] == "paid"


@pytest.mark.parametrize("prefer", ["wait=0", "respond-async", "wait=x", "", "wait=-1"])
def test_who_does_not_wait_long_enough_gets_202(lab: Lab, prefer: str) -> None:
    with TestClient(create_app(lab)) as api:  # nobody handles anything
        answer = api.post("/orders", json=new_order(), headers={"Prefer": prefer})
        assert answer.status_code == 202
        assert answer.json()["status"] == "pending"
        assert ("preference-applied" in answer.headers) == (prefer == "wait=0")


def test_a_header_that_is_a_list_may_come_in_several_lines(api: TestClient) -> None:
    prefer = [("Prefer", "respond-async"), ("Prefer", "wait=5")]
    made = api.post("/orders", json=new_order(order_id="o1"), headers=prefer)
    assert made.status_code == 201
    for tags in ('"7", W/"1"', '"a,b", "1"', "*", ' W/"1" '):
        assert api.get("/orders/o1", headers={"If-None-Match": tags}).status_code == 304
    several = [("If-None-Match", '"7"'), ("If-None-Match", '"1"')]
    assert api.get("/orders/o1", headers=several).status_code == 304
    for tags in ('"7"', '"a,""', '"1', "1", '"a,*"'):
        assert api.get("/orders/o1", headers={"If-None-Match": tags}).status_code == 200
    twice = [("If-Match", '"1"'), ("If-Match", '"2"')]
    answer = api.post("/orders/o1/payment", json={"cents": 500}, headers=[*twice, *prefer])
    problem(answer, 422, "unusable")


def test_steady_work_does_not_starve_those_who_wait(lab: Lab) -> None:
    thread, done = LabThread(lab), list[int]()

    def again() -> None:
        done.append(1)
        thread._work.put((again, Future()))

    again()
    for turn in range(1, 4):
        thread._serve()  # and returns, though there is always more
        assert len(done) == 1 + turn


def test_a_wait_is_bounded(api: TestClient) -> None:
    answer = api.post("/orders", json=new_order(), headers={"Prefer": "respond-async, wait=99999"})
    assert answer.headers["preference-applied"] == "wait=30"


def test_a_rule_says_no(api: TestClient) -> None:
    placed(api, order_id="o1")
    found = problem(api.post("/orders/o1/payment", json={"cents": 1}, headers=WAIT), 409, "refused")
    assert found["detail"] == "order 'o1' costs 500 cents, got 1"
    assert found["version"] == 1
    assert api.get(f"/commands/{found['token']}").json()["status"] == "refused"


def test_if_match_is_the_expected_version(api: TestClient) -> None:
    placed(api, order_id="o1")

    def pay(etag: str) -> Any:
        headers = {"If-Match": etag, **WAIT}
        return api.post("/orders/o1/payment", json={"cents": 500}, headers=headers)

    found = problem(pay('"7"'), 412, "precondition")
    assert found["version"] == 1
    for none in ('"x"', 'W/"1"', "1", ""):
        problem(pay(none), 412, "precondition")
    for several in ('"1", "2"', "*"):
        problem(pay(several), 422, "unusable")
    assert pay(api.get("/orders/o1").headers["etag"]).status_code == 200
    problem(pay('"1"'), 412, "precondition")


def test_of_two_who_saw_one_version_one_wins(api: TestClient) -> None:
    api.post("/accounts", json={"account_id": "a", "owner": "ann"}, headers=WAIT)
    statuses = []

    def deposit() -> None:
        headers = {"If-Match": '"1"', **WAIT}
        answer = api.post("/accounts/a/deposits", json={"cents": 5}, headers=headers)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=deposit) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 412, 412, 412, 412]
    assert api.get("/accounts/a", params={"version": 2}).json()["balance"] == 5


def test_a_key_makes_a_command_happen_once(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k1", **WAIT}
    first = api.post("/orders", json=new_order(), headers=headers)
    again = api.post("/orders", json=new_order(), headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"], "its id comes from the key"
    assert again.headers["etag"] == '"1"'
    other = api.post("/orders", json=new_order(), headers={"Idempotency-Key": "k2", **WAIT})
    assert other.json()["id"] != first.json()["id"]
    totals = api.get("/customers/ann/totals", params={"freshness": "linearizable"})
    assert totals.json()["orders"] == 2


def test_a_key_with_another_body_is_refused_also_by_another_process(lab: Lab) -> None:
    lab.start()
    headers = {"Idempotency-Key": "k1", **WAIT}
    with TestClient(create_app(lab)) as api:
        api.post("/orders", json=new_order(order_id="o1"), headers=headers)
    others: list[tuple[str, dict[str, Any]]] = [
        ("/orders", new_order(order_id="o1", cents=501)),
        ("/orders", new_order(order_id="o2")),  # of another stream: no handler could know
        ("/accounts", {"owner": "ann"}),
    ]
    with TestClient(create_app(lab)) as another:
        for path, body in others:
            problem(another.post(path, json=body, headers=headers), 422, "key-reused")
        pay = {"Idempotency-Key": "k2", **WAIT}
        another.post("/orders/o1/payment", json={"cents": 500}, headers=pay)
        again = another.post(
            "/orders/o1/payment", json={"cents": 500}, headers=pay | {"If-Match": '"1"'}
        )
        problem(again, 422, "key-reused")
        assert another.get("/customers/ann/totals").json()["orders"] == 1


def test_every_command_reaches_its_service(api: TestClient) -> None:
    done: list[tuple[str, str, dict[str, Any], int]] = [
        ("POST", "/customers", {"customer_id": "ann", "name": "Ann"}, 201),
        ("POST", "/products", {"product_id": "cd", "name": "A disc", "cents": 1_499}, 201),
        ("PUT", "/products/cd/price", {"cents": 1_299}, 200),
        ("POST", "/stock/cd/receipts", {"quantity": 10}, 200),
        ("POST", "/stock/cd/adjustments", {"quantity": -1, "reason": "counted"}, 200),
        ("POST", "/orders", new_order(order_id="o1"), 201),
        ("POST", "/orders/o1/payment", {"cents": 500}, 200),
        ("POST", "/orders/o1/shipment", {}, 200),
        ("POST", "/orders/o1/return", {"reason": "scratched", "day": "1997-02-03"}, 200),
        ("POST", "/orders", new_order(order_id="o2"), 201),
        ("POST", "/orders/o2/cancellation", {"reason": "late"}, 200),
        ("POST", "/accounts", {"account_id": "a1", "owner": "ann"}, 201),
        ("POST", "/accounts", {"account_id": "a2", "owner": "bob"}, 201),
        ("POST", "/accounts/a1/deposits", {"cents": 100}, 200),
        ("POST", "/accounts/a1/withdrawals", {"cents": 30}, 200),
        ("POST", "/accounts/a1/transfers", {"to": "a2", "cents": 50, "transfer_id": "t"}, 200),
    ]
    for method, path, body, status in done:
        answer = api.request(method, path, json=body, headers=WAIT)
        assert answer.status_code == status, (path, answer.text)
    fresh = {"freshness": "linearizable"}
    assert api.get("/customers/ann", params=fresh).json()["name"] == "Ann"
    assert api.get("/products/cd", params=fresh).json()["cents"] == 1_299
    assert len(api.get("/products", params=fresh).json()["rows"]) == 1
    assert api.get("/stock/cd", params=fresh).json()["on_hand"] == 9
    low = api.get("/stock", params=fresh | {"at_most": "9"}).json()["rows"]
    assert [stock["id"] for stock in low] == ["cd"]
    assert api.get("/stock", params=fresh | {"at_most": "8"}).json() == {"rows": []}
    assert api.get("/orders/o1", params=fresh).json()["status"] == "returned"
    assert api.get("/orders/o2", params=fresh).json()["status"] == "cancelled"
    whole = api.get("/orders/o1/fulfilment", params=fresh).json()
    assert (whole["order"]["id"], whole["held"]) == ("o1", [])
    assert whole["order"].keys().isdisjoint({"_id", "trace"})
    account = api.get("/accounts/a1", params=fresh).json()
    assert (account["balance"], account["open"]) == (20, 50)
    kinds = [t["kind"] for t in api.get("/accounts/a1/transactions").json()["rows"]]
    assert kinds == ["deposited", "withdrawn", "sent"]
    assert [c["id"] for c in api.get("/orders/best-customers").json()["rows"]] == ["ann"]


# --- queries


def test_an_etag_saves_the_answer(api: TestClient) -> None:
    placed(api, order_id="o1")
    etag = api.get("/orders/o1", params={"version": 1}).headers["etag"]
    assert etag == '"1"'
    for held in (etag, f'"0", W/{etag}', "*"):
        answer = api.get("/orders/o1", headers={"If-None-Match": held})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    assert api.get("/orders/o1", headers={"If-None-Match": '"0"'}).status_code == 200


def test_a_read_is_as_fresh_as_asked(lab: Lab) -> None:
    with TestClient(create_app(lab)) as api:  # the parts are stepped by hand
        token = api.post("/orders", json=new_order(order_id="o1")).json()["token"]
        problem(api.get("/orders/o1"), 404, "not-found")
        soon = {"token": token, "timeout": "0.05"}
        found = problem(api.get("/orders/o1", params=soon), 504, "timed-out")
        partition, offset = token.split("-")[1:]
        assert f"command {offset} of partition {partition} within 0.05 s" in found["detail"]
        service: Any = api.app.state.backend  # type: ignore[attr-defined]
        service.thread.call(lambda: lab.handler.step(0))
        late = {"freshness": "linearizable", "timeout": "0.05"}
        found = problem(api.get("/orders/o1", params=late), 504, "timed-out")
        assert "did not reach position" in found["detail"]
        found = problem(
            api.get("/orders/o1", params={"version": 1, "timeout": 0}), 504, "timed-out"
        )
        service.thread.call(lambda: lab.projector.step(0))
        for fresh in (soon, late, {"version": "1", "timeout": "0.05"}, {}):
            assert api.get("/orders/o1", params=fresh).status_code == 200


def test_nobody_waits_for_what_cannot_come(api: TestClient) -> None:
    placed(api, order_id="o1")
    found = problem(api.get("/orders/o1", params={"version": 2}), 404, "not-found")
    assert "version 2 of 'o1'" in found["detail"]
    for token in ("orders-0-99", "bank-0-0", "orders-9-0"):
        found = problem(api.get("/orders/o1", params={"token": token}), 422, "unusable")
        assert token in found["detail"]
    for missing in ("token", "version"):
        problem(api.get("/orders/o1", params={"freshness": missing}), 422, "unusable")
    problem(api.get("/orders/o1?freshness=eventual&version=1"), 422, "unusable")
    problem(api.get("/orders/o1?freshness=fresh"), 422, "invalid")


def test_pages_lead_on(api: TestClient) -> None:
    for n in range(5):
        placed(api, order_id=f"o{n}", cents=100 * n, day=f"1997-01-{n + 1:02}")
    found: list[str] = []
    path = "/customers/ann/orders?limit=2&sort=-cents&freshness=linearizable"
    pages = 0
    while path:
        answer = api.get(path)
        found += [order["id"] for order in answer.json()["rows"]]
        path = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
        pages += 1
    assert found == ["o4", "o3", "o2", "o1", "o0"]
    assert pages == 3
    some = api.get("/customers/ann/orders?status=cancelled").json()
    assert some == {"rows": []}
    problem(api.get("/customers/ann/orders?cursor=nonsense"), 422, "unusable")
    problem(api.get("/customers/ann/orders?limit=1001"), 422, "invalid")


def test_a_page_goes_on_after_more_cents_than_32_bits_hold(api: TestClient) -> None:
    for n in range(2):
        placed(api, order_id=f"o{n}", cents=10**12 - n)
    first = api.get("/customers/ann/orders?limit=1&sort=cents&freshness=linearizable")
    assert first.json()["rows"][0]["cents"] == 10**12 - 1
    path = first.headers["link"].partition(">")[0].removeprefix("<")
    assert api.get(path).json()["rows"][0]["cents"] == 10**12


# --- errors


def test_errors_are_problems(api: TestClient) -> None:
    problem(api.get("/nowhere"), 404, "not-found")
    problem(api.get("/orders/never"), 404, "not-found")
    answer = api.delete("/accounts")
    problem(answer, 405, "method")
    assert answer.headers["allow"] == "GET, POST"
    found = problem(api.post("/orders", json=new_order(quantity=0)), 422, "invalid")
    assert found["errors"][0]["where"] == "body.quantity"
    as_json = {"Content-Type": "application/json"}
    problem(api.post("/orders", content=b"{", headers=as_json), 400, "malformed")
    problem(api.post("/orders", content=b"1" * 5_000, headers=as_json), 400, "malformed")
    problem(api.post("/orders", content=b"[" * 50_000, headers=as_json), 400, "malformed")
    problem(api.post("/orders", content=b" " * 2_000_000, headers=as_json), 413, "too-large")
    problem(api.post("/orders", content=b"a=b"), 415, "media-type")


def test_who_is_being_shut_down_says_so(lab: Lab) -> None:
    with TestClient(create_app(lab)) as api:
        api.app.state.backend.thread.close()  # type: ignore[attr-defined]
        answer = api.post("/orders", json=new_order())
        problem(answer, 503, "unreachable")
        assert answer.headers["retry-after"] == "2"


ODD = [
    "ü" * 64,
    "日本語",
    "a b",
    "%",
    "%zz",
    "a/b",
    "a\\b",
    "\N{PILE OF POO}" * 16,
    "\0",
    "a\0b",
    "\ud800",
    "..",
    ".",
    "x" * 65,
    "x" * 10_000,
    "",
    " ",
    "\r\n",
    "\u2028",
    "'\"<>",
    "null",
    "?a=b",
    "#",
]


@pytest.fixture(scope="module")
def open_api() -> Iterator[TestClient]:
    """One for many ids."""
    with Lab(backend="memory", services=SERVICES) as lab:
        lab.start()
        with TestClient(create_app(lab)) as client:
            yield client


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_an_odd_id_is_never_a_bug(open_api: TestClient, odd: str) -> None:
    """It is taken as it is and found again, or turned away: below 500 in any case."""
    content = json.dumps(new_order(order_id=odd))
    headers = {"Content-Type": "application/json", **WAIT}
    made = open_api.post("/orders", content=content, headers=headers)
    assert made.status_code in (201, 409, 422), made.text
    id = segment(odd.encode(errors="replace").decode())
    answer = open_api.get(f"/orders/{id}", params={"freshness": "linearizable"})
    if made.status_code == 201:
        assert located(made) == f"/orders/{id}"
        assert answer.json()["id"] == odd
    assert answer.status_code < 500, answer.text
    assert open_api.get(f"/customers/{id}/orders").status_code < 500
    assert open_api.get("/orders/o", params={"token": id}).status_code == 422


# --- updates, health, metrics


def events(text: str) -> list[dict[str, str]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
        )
        if "data" in fields:
            found.append(fields)
    return found


def test_updates_begin_with_the_state(api: TestClient) -> None:
    path = "/orders/o1/updates?seconds=0.2"
    (first,) = events(api.get(path).text)
    assert (first["id"], first["data"]) == ("0", "null")
    placed(api, order_id="o1")
    api.get("/orders/o1", params={"version": 1})
    answer = api.get(path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first,) = events(answer.text)
    assert first["id"] == "1"
    assert '"id":"o1"' in first["data"]
    assert events(api.get(path, headers={"Last-Event-ID": "1"}).text) == []
    assert len(events(api.get(path, headers={"Last-Event-ID": "0"}).text)) == 1


def test_a_client_that_is_gone_before_its_first_update_leaves_nothing(lab: Lab) -> None:
    here = Backend(lab)
    route = next(r for r in here.addresses.queries if r.updates and r.path.startswith("/orders/"))

    async def gone(message: Any) -> None:
        raise OSError("the client is gone")

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def leave(version: str) -> None:
        answer = await updates(here, route, OrderById("o1"), None, 60.0)
        scope = {"type": "http", "asgi": {"spec_version": version}}
        with suppress(OSError, ClientDisconnect):
            await asyncio.wait_for(answer(scope, receive, gone), 20)

    lab.start()
    for version in ("2.3", "2.4"):
        asyncio.run(leave(version))
    assert lab.store._listeners == []  # type: ignore[attr-defined]
    assert here.streams.count == 0


def test_no_more_streams_are_open_than_may_be(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.api.updates.MAX_STREAMS", 2)
    here = Backend(lab)
    route = next(r for r in here.addresses.queries if r.updates and r.path.startswith("/orders/"))

    async def at_once() -> list[Any]:
        asked = [updates(here, route, OrderById(f"o{n}"), None, 0.0) for n in range(5)]
        return await asyncio.gather(*asked, return_exceptions=True)

    lab.start()
    refused = [answer for answer in asyncio.run(at_once()) if isinstance(answer, Problem)]
    assert [one.kind for one in refused] == ["unreachable"] * 3


def test_a_subscription_that_fails_in_an_unknown_way_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start()
    monkeypatch.setattr("labkit.api.updates.Subscription.poll", lambda *_: 1 / 0)
    with TestClient(create_app(lab), raise_server_exceptions=False) as api:
        problem(api.get("/orders/o1/updates"), 500, "internal")
    assert lab.store._listeners == []  # type: ignore[attr-defined]


def test_the_thread_of_the_live_page_ends_when_nobody_looks(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.api.feed.ALONE_SECONDS", 0.05)
    live = Live(Backend(lab))

    async def look() -> threading.Thread:
        mine = live.listen()
        assert b"tick" in await asyncio.wait_for(mine.get(), 20)
        live.leave(mine)
        assert live._thread is not None
        return live._thread

    for _ in range(2):  # it begins again with the next one
        thread = asyncio.run(look())
        thread.join(20)
        assert not thread.is_alive()
        assert live._thread is None


def test_it_is_alive_and_ready(api: TestClient) -> None:
    assert api.get("/health/live").json() == {"status": "live"}
    ready = api.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert set(ready["lag"]) == {f"{r}/{c}" for r in ("handler", "projector") for c in SERVICES}


def test_metrics_count_by_outcome_and_know_no_names_of_clients(api: TestClient) -> None:
    placed(api, order_id="o1")
    api.post("/orders/o1/payment", json={"cents": 1}, headers=WAIT)
    api.get("/orders/o1")
    api.get("/made-up")
    api.request("BREW", "/orders")
    text = api.get("/metrics").text
    assert 'labkit_commands_total{command="PlaceOrder",outcome="accepted"} 1.0' in text
    assert 'labkit_commands_total{command="PayOrder",outcome="refused"} 1.0' in text
    assert 'route="/orders/{order}",status="200"} 1.0' in text
    assert 'labkit_lag_offsets{role="projector",service="orders"} 0.0' in text
    assert 'route="unmatched",status="404"' in text
    assert "made-up" not in text
    assert "BREW" not in text


def test_the_page_has_all_that_it_needs(api: TestClient) -> None:
    answer = api.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    for outside in ('src="http', "url(http", "@import", '<link rel="stylesheet', "<script src"):
        assert outside not in answer.text


def test_on_the_live_page_who_is_shown_is_shown_to_its_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topics are looked at one after the other, so a commit may be seen before its command."""
    monkeypatch.setattr("labkit.api.feed.MOST_SHOWN", 2)
    live = Live(Backend(lab))

    def shown(*moved: str) -> list[str]:
        stages = [dict(zip(("token", "stage"), one.split(), strict=True)) for one in moved]
        return [f"{m['token']} {m['stage']}" for m in live._to_show(stages)]

    assert shown("a commit") == ["a commit"]
    assert shown("a command", "b command", "c command", "d command") == [
        "a command",
        "b command",
        "c command",
    ], "two new ones at a time, and those who are shown already"
    assert shown("d commit", "b commit", "a view") == ["b commit", "a view"]
    monkeypatch.setattr("labkit.api.feed.MOST_KNOWN", 3)
    shown("e command")
    assert list(live._shown) == ["c", "d", "e"], "bounded"


def test_the_live_page_remembers_no_more_than_it_must(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no projector runs, every commit waits for its view."""
    monkeypatch.setattr("labkit.api.feed.MOST_KNOWN", 3)
    with ExitStack() as opened:
        tail = _Tail(Backend(lab), "bank", opened)
        for n in range(5):
            lab.bus.send(OpenAccount(f"a{n}", "ann")).token()
        lab.by_hand("handler", "bank").step(0)
        shown = [one["stream"] for one in tail.look() if one["stage"] == "commit"]
        assert sorted(shown) == [f"a{n}" for n in range(5)]
        assert [commit.stream for commit in tail._unseen.values()] == shown[-3:]


@pytest.mark.parametrize(("host", "open_to_others"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_who_serves_is_told_what_starts_and_who_gets_in(
    host: str, open_to_others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(serve.Server, "run", lambda *_, **__: None)
    monkeypatch.setattr(serve, "_own", lambda *_: Lab(backend="memory", services=["orders"]))
    with serve.listen(host, 0) as at:
        serve.api("lab", None, at, DEFAULTS, said.append)
    assert any("the workers of orders start" in line for line in said)
    assert any("whoever reaches it may send" in line for line in said) == open_to_others

"""The API of a service that labkit does not know: all of it comes from its types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta
from starlette.testclient import TestClient

import labkit.api
from labkit.api import create_app
from labkit.errors import UsageError
from labkit.lab import Lab
from labkit.messages import Command, Document, Event, State
from labkit.service import Query, Service, View, Views
from tests.desk_for_api import DESK
from tests.test_api import events, located, problem

WAIT = {"Prefer": "wait=5"}
FRESH = {"freshness": "linearizable"}


@pytest.fixture
def api() -> Iterator[TestClient]:
    with Lab(backend="memory", services=[DESK]) as lab:
        lab.start()
        with TestClient(create_app(lab)) as client:
            yield client


def opened(api: TestClient, **fields: Any) -> dict[str, Any]:
    answer = api.post("/desk", json={"customer": "ann"} | fields, headers=WAIT)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_no_file_of_the_api_names_a_service() -> None:
    names = re.compile(
        r"labkit\.services\.|\b(orders|inventory|catalog|bank|fulfilment|transfer|PlaceOrder)\b"
    )
    for path in Path(labkit.api.__file__).parent.glob("*.*"):
        assert names.findall(path.read_text(encoding="utf-8")) == [], path.name


# --- commands


def test_an_id_may_be_given_derived_or_new(api: TestClient) -> None:
    assert opened(api, id="t1")["resource"] == "/desk/t1"
    assert opened(api)["id"] != opened(api)["id"]
    headers = {"Idempotency-Key": "k", **WAIT}
    first = api.post("/desk", json={"customer": "ann"}, headers=headers)
    again = api.post("/desk", json={"customer": "ann"}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert located(first) == f"/desk/{first.json()['id']}"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "body.customer"),
        ({"customer": 1}, "body.customer"),
        ({"customer": None}, "body.customer"),
        ({"customer": "Ann"}, "body.customer"),
        ({"customer": "a" * 21}, "body.customer"),
        ({"customer": "ann", "colour": "red"}, "body.colour"),
        ({"customer": "ann", "type": "OpenTicket"}, "body.type"),
        ({"customer": "ann", "urgency": "medium"}, "body.urgency"),
        ({"customer": "ann", "minutes": "5"}, "body.minutes"),
        ({"customer": "ann", "minutes": 1.5}, "body.minutes"),
        ({"customer": "ann", "minutes": 2**63}, "body.minutes"),
        ({"customer": "ann", "hours": -0.5}, "body.hours"),
        ({"customer": "ann", "contact": {}}, "body.contact.mail"),
        ({"customer": "ann", "contact": {"mail": 5}}, "body.contact.mail"),
        ({"customer": "ann", "contact": {"mail": "x", "phones": ["1"] * 4}}, "body.contact.phones"),
        ({"customer": "ann", "id": ""}, "body.id"),
        ({"customer": "ann", "id": "\0a"}, "body.id"),
        ({"customer": "ann", "id": "x" * 201}, "body.id"),
        ({"customer": "ann", "id": None}, "body.id"),
        ([], "body"),
        ("ann", "body"),
    ],
    ids=repr,
)
def test_what_does_not_fit_the_types_is_turned_away(api: TestClient, body: Any, where: str) -> None:
    found = problem(api.post("/desk", json=body, headers=WAIT), 422, "invalid")
    assert found["errors"][0]["where"] == where, found


def test_what_fits_is_taken_as_it_is(api: TestClient) -> None:
    contact = {"mail": "a@b", "phones": ["1", "2"]}
    opened(api, id="t1", minutes=2**63 - 1, hours=2, contact=contact, urgency="high")
    opened(api, id="t2", minutes=5.0)
    closed = api.put("/desk/t2/end", json={"stars": 3.0}, headers=WAIT)
    assert closed.status_code == 200, "in JSON Schema 3.0 is an integer, also if it may be null"
    found = api.get("/desk/t1", params=FRESH).json()
    assert (found["minutes"], found["contact"]) == (2**63 - 1, {"mail": "a@b"})
    assert api.get("/desk/t2", params=FRESH).json()["minutes"] == 5


def test_what_a_command_says_of_itself_is_no_conflict(api: TestClient) -> None:
    body = {"customer": "ann", "urgency": "high", "hours": 11}
    found = problem(api.post("/desk", json=body), 422, "unusable")
    assert found["detail"] == "what takes 11.0 hours is not urgent"


def test_a_body_must_be_json_and_say_so(api: TestClient) -> None:
    as_json = {"Content-Type": "application/json"}
    for malformed in (b"", b"{", b"a=b", b"NaN", b"\xff", b"[" * 50_000, b"1" * 5_000):
        problem(api.post("/desk", content=malformed, headers=as_json), 400, "malformed")
    half = rb'{"customer": "ann", "id": "\ud800"}'
    problem(api.post("/desk", content=half, headers=as_json), 422, "invalid")
    found = problem(
        api.post("/desk", content=b'{"id": 1,\n "x": y}', headers=as_json), 400, "malformed"
    )
    assert found["errors"] == [{"where": "body, line 2 column 7", "what": "Expecting value"}]
    for media in ("text/plain", "application/x-www-form-urlencoded", "", None):
        headers = {} if media is None else {"Content-Type": media}
        answer = api.post("/desk", content=b"{}", headers=headers)
        assert "application/json" in problem(answer, 415, "media-type")["detail"]
        assert answer.headers["accept"] == "application/json"
    patch = {"Content-Type": "application/merge-patch+json; charset=utf-8"}
    answer = api.post("/desk", content=b'{"customer": "ann"}', headers=patch)
    assert answer.status_code == 202


def test_methods_and_paths_are_those_that_the_service_names(api: TestClient) -> None:
    opened(api, id="t1")
    closed = api.put("/desk/t1/end", json={"stars": 5}, headers=WAIT | {"If-Match": '"1"'})
    assert (closed.status_code, closed.headers["etag"]) == (200, '"2"')
    problem(api.put("/desk/t1/end", json={"id": "t2"}, headers=WAIT), 422, "invalid")
    problem(api.put("/desk/t1/end", json={}, headers=WAIT), 409, "refused")
    assert api.delete("/desk/t1", headers=WAIT).status_code == 200, "needs no body"
    problem(api.post("/desk/t1/escalate", json={}), 404, "not-found")
    answer = api.patch("/desk/t1")
    problem(answer, 405, "method")
    assert answer.headers["allow"] == "DELETE, GET"
    assert api.patch("/desk/count").headers["allow"] == "GET", "the more exact path counts"


# --- queries


def test_a_document_is_shown_without_what_the_view_keeps_for_itself(api: TestClient) -> None:
    opened(api, id="t1")
    answer = api.get("/desk/t1", params={"version": 1})
    assert answer.json() == {
        **{"id": "t1", "version": 1, "customer": "ann", "urgency": "low", "contact": None},
        **{"minutes": 0, "closed": False},
    }
    assert answer.headers["etag"] == '"1"'
    assert api.get("/desk/t1", headers={"If-None-Match": '"1"'}).status_code == 304
    problem(api.get("/desk/t2"), 404, "not-found")
    problem(api.get("/desk/t1", params={"version": 9}), 404, "not-found")


def test_every_view_has_its_documents_and_pages(api: TestClient) -> None:
    for n in range(3):
        opened(api, id=f"t{n}")
    first = api.get("/desk/tickets", params=FRESH | {"limit": 2})
    assert [row["id"] for row in first.json()["rows"]] == ["t0", "t1"]
    path = first.headers["link"].partition(">")[0].removeprefix("<")
    assert [row["id"] for row in api.get(path).json()["rows"]] == ["t2"]
    assert "link" not in api.get(path).headers
    assert api.get("/desk/tickets/t1").headers["etag"] == '"1"'
    sums = api.get("/desk/customers").json()["rows"]
    assert sum(row["events"] for row in sums) == 3
    one = api.get(f"/desk/customers/{sums[0]['id']}")
    assert one.json() == sums[0]
    assert "etag" not in one.headers, "no stream's version says when it changes"
    problem(api.get(f"/desk/customers/{sums[0]['id']}?version=1"), 422, "invalid")


def test_the_next_page_of_an_odd_address_is_found(api: TestClient) -> None:
    class Odd(Query, frozen=True):
        name: str
        limit: int = 100
        cursor: str = ""
        path = "/odd/{name}/pages"

        def read(self, views: Views) -> Any:
            return views.page(Things, limit=self.limit, cursor=self.cursor)

    with Lab(backend="memory", services=[things(queries=[Odd])]) as lab:
        lab.start()
        with TestClient(create_app(lab)) as odd:
            for n in range(2):
                odd.post(f"/things/t{n}/make", json={}, headers=WAIT)
            first = odd.get("/odd/%25%20ü%3F/pages?limit=1&freshness=linearizable")
            path = first.headers["link"].partition(">")[0].removeprefix("<")
            assert path.startswith("../../odd/%25%20%C3%BC%3F/pages?limit=1&fresh"), path
            assert [row["id"] for row in odd.get(path).json()["rows"]] == ["t1"]


def test_answers_of_every_shape_are_objects(api: TestClient) -> None:
    for n in range(3):
        opened(api, id=f"t{n}")
    assert api.get("/desk/count", params=FRESH).json() == {"value": 3}
    some = api.get("/desk/tickets-by-id?ids=t0&ids=t2&ids=t9").json()
    assert [row["id"] for row in some["rows"]] == ["t0", "t2"]
    assert len(api.get("/desk/tickets-by-id?ids=t1").json()["rows"]) == 1
    assert api.get("/desk/tickets-by-id?ids=t1&closed=true").json() == {"rows": []}
    pair = api.get("/desk/pair?left=t0&right=t1&at_least=1.5").json()
    assert pair["left"]["id"] == "t0"
    shown = [pair["left"], *pair["others"]]
    assert all(row.keys().isdisjoint({"_id", "trace"}) for row in shown)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("/desk/tickets-of", "query.customer"),
        ("/desk/tickets-of?customer=Ann", "query.customer"),
        ("/desk/tickets-of?customer=ann&customer=bob", "query.customer"),
        ("/desk/tickets-of?customer=ann&limit=0", "query.limit"),
        ("/desk/tickets-of?customer=ann&limit=5.0", "query.limit"),
        ("/desk/tickets-of?customer=ann&limit=1e2", "query.limit"),
        ("/desk/tickets-of?customer=ann&colour=red", "query.colour"),
        ("/desk/tickets-of?customer=ann&version=1", "query.version"),
        ("/desk/tickets-by-id?ids=1&ids=2&ids=3&ids=4&ids=5&ids=6", "query.ids"),
        ("/desk/tickets-by-id?ids=1&closed=null", "query.closed"),
        ("/desk/tickets-by-id?ids=1&closed=1", "query.closed"),
        ("/desk/pair?left=a&right=b&at_least=nan", "query.at_least"),
        (f"/desk/pair?left=a&right={'b' * 4_001}", "query.right"),
        ("/desk/count?limit=5", "query.limit"),
    ],
)
def test_a_condition_that_cannot_be_is_named(api: TestClient, address: str, where: str) -> None:
    found = problem(api.get(address), 422, "invalid")
    assert found["errors"][0]["where"] == where, found


def test_what_a_query_refuses_is_unusable(api: TestClient) -> None:
    problem(api.get("/desk/tickets-by-id?ids="), 422, "unusable")
    problem(api.get("/desk/tickets-of?customer=ann&cursor=x"), 422, "unusable")


def test_updates_of_a_stream_and_of_any_document(api: TestClient) -> None:
    opened(api, id="t1")
    api.get("/desk/t1", params={"version": 1})
    for path in ("/desk/t1/updates", "/desk/tickets/t1/updates"):
        (first,) = events(api.get(f"{path}?seconds=0.1").text)
        assert first["id"] == "1"
        assert '"id":"t1"' in first["data"]
        assert events(api.get(f"{path}?seconds=0.1", headers={"Last-Event-ID": "1"}).text) == []
    key = api.get("/desk/customers").json()["rows"][0]["id"]
    path = f"/desk/customers/{key}/updates?seconds=0.1"
    (first,) = events(api.get(path).text)
    assert '"events":1' in first["data"]
    seen = {"Last-Event-ID": first["id"]}
    assert events(api.get(path, headers=seen).text) == []
    api.put("/desk/t1/end", json={}, headers=WAIT)
    api.get("/desk/t1", params={"version": 2})
    (second,) = events(api.get(path, headers=seen).text)
    assert '"events":2' in second["data"]


# --- OpenAPI


def test_openapi_says_what_the_types_say(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    new = document["paths"]["/desk"]["post"]
    assert (new["operationId"], new["tags"]) == ("openTicket", ["desk"])
    body = new["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["customer"]
    assert body["properties"]["customer"] == {
        **{"type": "string", "minLength": 1, "maxLength": 20, "pattern": "^[a-z]+$"},
        "examples": ["ann"],
    }
    assert body["properties"]["hours"]["maximum"] == 1_000
    assert "type" not in body["properties"]
    assert document["components"]["schemas"]["Contact"]["required"] == ["mail"]
    links = new["responses"]["201"]["links"]
    assert links["ticketById"]["parameters"] == {
        "id": "$response.body#/id",
        "version": "$response.body#/version",
    }
    assert set(document["paths"]["/desk/{id}"]) == {"get", "delete"}, "one path in OpenAPI"
    one = document["paths"]["/desk/{id}"]["get"]["parameters"]
    assert [p["name"] for p in one if p["in"] == "path"] == ["id"]
    assert {"closeTicket", "forgetTicket", "followTicketById", "getCommand"} <= links.keys()
    assert "escalate" not in str(document)
    many = document["paths"]["/desk/tickets-of"]["get"]
    found = {p["name"]: p for p in many["parameters"]}
    assert found["customer"]["required"]
    assert found["limit"]["schema"]["maximum"] == 1_000
    assert "version" not in found
    assert "Link" in many["responses"]["200"]["headers"]
    flag = document["paths"]["/desk/tickets-by-id"]["get"]["parameters"]
    (closed,) = [p for p in flag if p["name"] == "closed"]
    assert closed["schema"] == {"type": "boolean"}, "left out, and never null"


# --- other services

TicketNumber = Annotated[str, Meta(pattern=r"^T-\d{3}$")]


class Make(Command, frozen=True):
    id: str


class Made(Event, frozen=True):
    pass


class Thing(State, frozen=True):
    pass


class Things(View):
    def apply(self, document: Any, event: Any) -> Document:
        return {}


def things(name: str = "things", **more: Any) -> Service:
    fields: dict[str, Any] = {
        "decide": {Make: lambda thing, command: Made()},
        "views": [Things],
    }
    return Service(
        name,
        events=[Made],
        evolve=lambda thing, event: Thing(),
        state=Thing,
        **fields | more,
    )


def test_a_service_without_views_only_takes_commands() -> None:
    with Lab(backend="memory", services=[things(views=[])]) as lab:
        lab.start()
        with TestClient(create_app(lab)) as api:
            answer = api.post("/things/t1/make", json={}, headers=WAIT)
            assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')
            token = answer.json()["token"]
            assert answer.json()["resource"] == f"/commands/{token}"
            assert api.get(f"/commands/{token}").json()["status"] == "accepted"
            assert api.get("/health/ready").status_code == 200


def test_without_a_query_the_view_shows_what_was_made() -> None:
    with Lab(backend="memory", services=[things()]) as lab:
        lab.start()
        with TestClient(create_app(lab)) as api:
            made = api.post("/things/t1/make", json={}, headers=WAIT).json()
            assert made["resource"] == "/things/things/t1"
            assert api.get(made["resource"], params={"version": 1}).json()["id"] == "t1"


def test_an_id_that_names_another_resource_is_found_in_the_view() -> None:
    class ThingById(Query, frozen=True):
        thing: str
        path = "/things/{thing}"

        def read(self, views: Views) -> Document | None:
            return views.get(Things, self.thing)

    class Count(Query, frozen=True):
        def read(self, views: Views) -> int:
            return views.count(Things)

    service = things(queries=[ThingById, Count])
    with Lab(backend="memory", services=[service]) as lab:
        lab.start()
        with TestClient(create_app(lab)) as api:
            made = api.post("/things/t1/make", json={}, headers=WAIT).json()
            assert made["resource"] == "/things/t1"
            made = api.post("/things/count/make", json={}, headers=WAIT).json()
            assert made["resource"] == "/things/things/count"
            assert api.get(made["resource"], params=FRESH).json()["id"] == "count"
            assert api.get("/things/count").json() == {"value": 2}


def test_an_id_must_be_given_where_a_new_one_would_not_fit() -> None:
    class Number(Command, frozen=True):
        id: TicketNumber

    class NumberById(Query, frozen=True):
        id: TicketNumber
        path = "/things/{id}"

        def read(self, views: Views) -> Document | None:
            return views.get(Things, self.id)

    service = things(
        decide={Number: lambda thing, command: Made()},
        queries=[NumberById],
        public={Number: "POST /things"},
    )
    with Lab(backend="memory", services=[service]) as lab:
        lab.start()
        with TestClient(create_app(lab)) as api:
            found = problem(api.post("/things", json={}), 422, "invalid")
            assert found["errors"][0]["where"] == "body.id"
            problem(api.post("/things", json={"id": "T-12"}), 422, "invalid")
            made = api.post("/things", json={"id": "T-123"}, headers=WAIT)
            assert located(made) == "/things/T-123"
            shown = api.get("/things/T-123", params={"version": 1})
            assert shown.headers["etag"] == '"1"'
            problem(api.get("/things/T-12"), 422, "invalid")


def test_services_may_have_types_of_one_name() -> None:
    def service(name: str, inner: type) -> Service:
        label = msgspec.defstruct("Label", [("text", inner)], module=name, frozen=True)
        fields = [("id", str), ("label", label)]
        attach = msgspec.defstruct("Attach", fields, bases=(Command,), module=name, frozen=True)
        return things(name, decide={attach: lambda thing, command: Made()})

    services = [service("here", str), service("there", int)]
    with Lab(backend="memory", services=services) as lab, TestClient(create_app(lab)) as api:
        assert api.post("/here/a/attach", json={"label": {"text": "x"}}).status_code == 202
        assert api.post("/there/a/attach", json={"label": {"text": 1}}).status_code == 202
        problem(api.post("/there/a/attach", json={"label": {"text": "x"}}), 422, "invalid")
        document = api.get("/openapi.json").json()
        found = [o["operationId"] for path in document["paths"].values() for o in path.values()]
        assert len(found) == len(set(found))
        assert {"attach", "thereAttach"} <= set(found)
        refs = re.findall(r"#/components/schemas/([^'\"]+)", str(document))
        assert set(refs) <= document["components"]["schemas"].keys()


def test_two_routes_with_one_address_are_refused() -> None:
    class One(Query, frozen=True):
        a: str
        path = "/of/{a}"

        def read(self, views: Views) -> Any:
            return views.get(Things, self.a)

    class Other(Query, frozen=True):
        b: str
        path = "/of/{b}"

        def read(self, views: Views) -> Any:
            return views.get(Things, self.b)

    class Health(Query, frozen=True):
        path = "/health/ready"

        def read(self, views: Views) -> Any:
            return None

    class Unknown(Query, frozen=True):
        path = "/of/{nothing}"

        def read(self, views: Views) -> Any:
            return None

    for queries, words in (
        ([One, Other], ["GET /of/{b}", "One", "Other", "'things'"]),
        ([Health], ["GET /health/ready", "Health", "the API's own"]),
        ([Unknown], ["/of/{nothing}", "Unknown"]),
    ):
        with Lab(backend="memory", services=[things(queries=queries)]) as lab:
            with pytest.raises(UsageError) as refused:
                create_app(lab)
            for word in words:
                assert word in str(refused.value)


def test_a_declared_query_may_take_the_place_of_a_view() -> None:
    class Mine(Query, frozen=True):
        path = "/things/things"

        def read(self, views: Views) -> int:
            return 7

    mine = things(queries=[Mine])
    with Lab(backend="memory", services=[mine]) as lab, TestClient(create_app(lab)) as api:
        assert api.get("/things/things").json() == {"value": 7}

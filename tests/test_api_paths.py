"""Any id can be a segment of a path, and any prefix may come before it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from labkit.api import create_app
from labkit.api.paths import Segment, segment
from labkit.api.problems import KINDS
from labkit.lab import Lab
from labkit.messages import MAX_ID
from tests.desk_for_api import DESK
from tests.serving import Below
from tests.test_api import located, problem

WAIT = {"Prefer": "wait=5"}
FRESH = {"freshness": "linearizable"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backend="memory", services=[DESK]) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def api(lab: Lab) -> Iterator[TestClient]:
    with TestClient(create_app(lab)) as client:
        yield client


def links(answer: Any) -> list[str]:
    """The addresses in ``Link`` headers, as a client finds them."""
    found = re.findall("<(.*?)>", answer.headers.get("link", ""))
    return [urljoin(str(answer.url), one) for one in found]


# --- ids

#: What a command may carry as its id: any text of 1 to ``MAX_ID`` characters without NUL in front.
IDS = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=MAX_ID),
    st.text(st.sampled_from("/%.~?#&+;= a0F2é张\\\r\n"), min_size=1, max_size=6),
).filter(lambda id: id[0] != "\0")


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(IDS)
@example("a/b")
@example("/")
@example("%2F")
@example("a%41")
@example("?a=b#c")
@example(".")
@example("..")
@example("~.")
@example("~~..")
@example(".t")
@example("张三 Ünal")
@example("count")
@example("x/updates")
@example("\r\nLocation: /elsewhere")
def test_every_id_that_a_command_may_carry_can_be_named(api: TestClient, id: str) -> None:
    made = api.post("/desk", json={"id": id, "customer": "ann"}, headers=WAIT)
    if made.status_code == 409:  # drawn before
        made = api.post("/desk", json={"customer": "ann"}, headers=WAIT)
        id = made.json()["id"]
    assert made.status_code == 201, made.text
    for where in (urljoin(str(made.url), made.headers["location"]), made.json()["resource"]):
        found = api.get(where, params={"version": 1})
        assert (found.status_code, found.json()["id"]) == (200, id), where
        assert api.get(f"{where}/updates?seconds=0").status_code == 200
    status = api.get(f"/commands/{made.json()['token']}").json()
    assert (status["id"], status["resource"]) == (id, made.json()["resource"])
    view = api.get(f"/desk/customers/{segment(id)}")
    problem(view, 404, "not-found")
    closed = api.put(f"/desk/{segment(id)}/end", json={}, headers=WAIT | {"If-Match": '"1"'})
    assert (closed.status_code, closed.json()["id"]) == (200, id), closed.text


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8))
@example("..")
@example("~..")
@example("%2F")
def test_a_segment_gives_back_its_value(value: str) -> None:
    assert re.fullmatch(r"[\w.~%-]+", segment(value), re.ASCII)
    assert segment(value) not in (".", "..")
    kept = segment(value).replace("%25", "\0").replace("%2F", "\1")
    assert Segment().convert(kept.replace("\0", "%25").replace("\1", "%2F")) == value


def test_half_a_character_in_a_path_is_malformed_and_not_another_id(api: TestClient) -> None:
    problem(api.get("/desk/%FF"), 400, "malformed")
    problem(api.get("/desk/%FF/%2f/nowhere"), 404, "not-found")


# --- a prefix


def test_no_address_leaves_a_prefix_that_nobody_told_of(lab: Lab) -> None:
    below = Below(create_app(lab))
    with TestClient(below, base_url=f"http://host{Below.PREFIX}/") as api:
        for page in ("", "docs", "problems", "problems/refused"):
            answer = api.get(page)
            assert answer.status_code == 200, page
            named = re.findall(
                r"""(?:href|src|url)\s*[=:]\s*["']([^"']+)|Source\("([^"]+)""", answer.text
            )
            inside = [
                a or b for a, b in named if not (a or b).startswith(("http://www.w3", "data:"))
            ]
            assert inside, page
            for one in inside:
                where = urljoin(str(answer.url), one)
                assert where.startswith(f"http://host{Below.PREFIX}/"), (page, one)
                assert api.get(where, params={"seconds": 0} if one == "live" else {}).is_success
        made = api.post("desk", json={"id": "p/q", "customer": "zoe"}, headers=WAIT)
        at = urljoin(str(made.url), made.headers["location"])
        assert at == f"http://host{Below.PREFIX}/desk/p%2Fq"
        assert api.get(at, params=FRESH).json()["id"] == "p/q"
        changed = api.put(f"{at}/end", json={})
        where = urljoin(str(changed.url), changed.headers["location"])
        assert api.get(where).json()["token"] == changed.json()["token"]
        api.post("desk", json={"customer": "zoe"}, headers=WAIT)
        first = api.get("desk/tickets-of", params=FRESH | {"customer": "zoe", "limit": "1"})
        assert len(api.get(links(first)[0]).json()["rows"]) == 1
        refused = api.put(f"{at}/end", json={}, headers=WAIT)
        assert "business rule" in api.get(links(refused)[0]).text
        server = api.get("openapi.json").json()["servers"][0]["url"]
        assert urljoin(f"{Below.PREFIX}/openapi.json", server) == f"{Below.PREFIX}/"
        problem(api.get("desk/"), 404, "not-found")
    assert below.lost == []


def test_below_a_prefix_that_it_is_told_of(lab: Lab, api: TestClient) -> None:
    with TestClient(Starlette(routes=[Mount("/a b/x", api.app)])) as mounted:
        made = mounted.post("/a b/x/desk", json={"id": "m/n", "customer": "ann"}, headers=WAIT)
        assert located(made) == "/a%20b/x/desk/m%2Fn"
        assert mounted.get(located(made), params=FRESH).json()["id"] == "m/n"


# --- what is there


def test_every_type_of_problem_has_its_page(api: TestClient) -> None:
    every = api.get("/problems").text
    for kind, known in KINDS.items():
        page = api.get(f"/problems/{kind}")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert f"{known.status} " in page.text
        assert f": {kind}</h2>" in every
    problem(api.get("/problems/none"), 404, "not-found")


@pytest.mark.parametrize("path", ["/deks", "/desk/a/b", "/docs/no", "/nowhere", "/"])
def test_an_unknown_path_or_method_says_what_there_is(api: TestClient, path: str) -> None:
    if path != "/":
        found = problem(api.get(path), 404, "not-found")
        assert "/docs" in found["detail"]
    if path == "/deks":
        assert "/desk" in found["detail"]
    answer = api.request("BREW", "/desk")
    assert "it knows POST" in problem(answer, 405, "method")["detail"]
    assert answer.headers["allow"] == "POST"
    answer = api.post(urlsplit("/docs").path)
    assert (problem(answer, 405, "method")["status"], answer.headers["allow"]) == (405, "GET")

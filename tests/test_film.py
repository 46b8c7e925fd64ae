import re
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from labkit.plots.film import HEIGHT, WIDTH, Film, Trace, text_width

SVG = "{http://www.w3.org/2000/svg}"
INSTANTS = ("sent", "polled", "decided", "fetched", "applied")


def trace(*ms: float, **changes: Any) -> Trace:
    """A trace whose instants are ``ms`` after an arbitrary start of the monotonic clock."""
    start = 86_400_000_000_123
    instants = {n: start + round(t * 1e6) for n, t in zip(INSTANTS, ms, strict=False)}
    facts: dict[str, Any] = {
        "stream": "order-17",
        "command": "PlaceOrder",
        "events": ("OrderPlaced",),
        "outcome": "accepted",
        "partitions": 4,
        "partition": 2,
        "command_offset": 17402,
        "event_offset": 34811,
        "version": 1,
        "service": "orders",
        "instants": instants,
    }
    return Trace(**(facts | changes))


USUAL = (0, 3.2, 4.1, 14.9, 18.3)
REFUSED: dict[str, Any] = {"outcome": "refused", "events": (), "version": 3}
HOSTILE = "</text><script>alert('訂單')</script>&\"\x00\x1b\ud800\u202e" + "W訂" * 200
FILMS = {
    "usual": trace(*USUAL),
    "a short stage beside a long one": trace(0, 0.1, 40, 40.05, 40.2),
    "all but at once": trace(0, 0, 0, 0, 0),
    "in memory": trace(0, 0.004, 0.01, 0.0105, 0.02, partitions=1, partition=0),
    "a long queue": trace(0, 34567, 34567.1, 34599, 34600.5, partitions=64, partition=63),
    "hostile": trace(*USUAL, stream=HOSTILE, command="W" * 90, events=("W" * 90,) * 9),
    "large numbers": trace(*USUAL, command_offset=2**31, event_offset=2**31, version=987_654),
    "refused": trace(*USUAL[:3], **REFUSED),
    "refused, and read": trace(*USUAL, **REFUSED, partition=0),
    "not yet read": trace(*USUAL[:3]),
}


def texts(film: Film) -> list[str]:
    return [element.text or "" for element in parsed(film).iter(f"{SVG}text")]


def parsed(film: Film) -> ElementTree.Element:
    return ElementTree.fromstring(film.svg)


def ids(film: Film) -> list[str]:
    return re.findall(r'\bid="([^"]+)"', film.svg)


def keyframes(film: Film, element: str) -> list[tuple[float, str]]:
    """The (percent of the loop, CSS) of what moves an element."""
    rule = re.search(rf"@keyframes {element}{{((?:[^{{}}]+{{[^}}]*}})+)}}", film.svg)
    assert rule
    return [(float(at), css) for at, css in re.findall(r"([\d.]+)%{([^}]*)}", rule[1])]


def boxes(film: Film) -> list[tuple[str, float, float, float, float]]:
    """Each text with the left, top, right and bottom of the room it takes at most."""
    found = []
    for element in parsed(film).iter(f"{SVG}text"):
        text, size = element.text or "", float(element.attrib["font-size"])
        width = text_width(text, size, "font-weight" in element.attrib)
        left = float(element.attrib["x"])
        left -= {"middle": width / 2, "end": width}.get(element.get("text-anchor", ""), 0)
        y = float(element.attrib["y"])
        if text:
            found.append((text, left, y - 0.8 * size, left + width, y + 0.2 * size))
    return found


@pytest.mark.parametrize("name", FILMS)
def test_no_text_covers_another_or_leaves_the_card(name: str) -> None:
    placed = boxes(Film(FILMS[name]))
    for text, left, top, right, bottom in placed:
        assert left >= 8, text
        assert right <= WIDTH - 8, text
        assert top >= 8, text
        assert bottom <= HEIGHT - 8, text
    for a, b in combinations(placed, 2):
        apart = a[3] <= b[1] or b[3] <= a[1] or a[4] <= b[2] or b[4] <= a[2]
        assert apart, (a, b)


@pytest.mark.parametrize("name", FILMS)
def test_a_film_is_one_svg_that_needs_nothing_else(name: str) -> None:
    root = parsed(Film(FILMS[name]))
    assert root.tag == f"{SVG}svg"
    assert root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT}"
    # JupyterLab shows it as an image, whose fixed size would be cut off in a narrow page.
    assert (root.get("width"), root.get("height")) == ("100%", None)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "desc", "style", "g", "rect", "path", "circle", "polyline", "text")
    }
    svg = Film(FILMS[name]).svg
    assert "http" not in svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "url(" not in svg
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)"', svg)) >= 11


def test_it_tells_the_instants_of_the_run() -> None:
    shown = texts(Film(trace(*USUAL)))
    assert {"3.20 ms", "0.900 ms", "10.80 ms", "3.40 ms"} <= set(shown)
    assert {"17 %", "5 %", "59 %", "19 %"} <= set(shown)
    assert "from 4.10 to 14.90 ms" in shown
    assert "accepted: OrderPlaced; 18.30 ms from sent to applied" in shown


def test_bars_are_to_scale() -> None:
    bars = [
        e.attrib for e in parsed(Film(trace(*USUAL))).iter(f"{SVG}rect") if "rx" not in e.attrib
    ]
    widths = [float(bar["width"]) for bar in bars]
    stages = [3.2, 0.9, 10.8, 3.4]
    assert widths == pytest.approx([sum(widths) * ms / 18.3 for ms in stages], abs=0.02)
    ends = [float(bar["x"]) + float(bar["width"]) for bar in bars]
    assert ends[:-1] == pytest.approx([float(bar["x"]) for bar in bars[1:]], abs=0.02)


def test_the_play_head_and_the_message_keep_real_time() -> None:
    film = Film(trace(*USUAL))
    moving = [element for element in parsed(film).iter() if element.get("transform")]
    (message,) = [e.attrib["id"] for e in moving if e.tag == f"{SVG}g" and e.get("id")]
    (head,) = [e.attrib["id"] for e in moving if e.tag == f"{SVG}path"]
    run = keyframes(film, head)[1][0]
    loop = float(re.findall(r"animation:\S+ ([\d.]+)s linear infinite", film.svg)[0])
    assert f"shown {loop * run / 100 / 18.3e-3:.0f} times slower" in texts(film)
    at = {ms: run * ms / 18.3 for ms in USUAL}
    moves = keyframes(film, message)
    handler = [p for p, css in moves if css.startswith("transform:translate(338")]
    assert handler == pytest.approx([at[3.2]], abs=0.002)
    projector = [p for p, css in moves if css.startswith("transform:translate(644")]
    assert projector == pytest.approx([at[14.9]], abs=0.002)
    assert [p for p, _ in moves] == sorted(p for p, _ in moves)


@pytest.mark.parametrize(("partitions", "partition"), [(1, 0), (4, 0), (4, 3), (12, 7), (64, 63)])
def test_the_message_passes_through_its_own_partition(partitions: int, partition: int) -> None:
    film = Film(trace(*USUAL, partitions=partitions, partition=partition))
    ours = [e for e in parsed(film).iter(f"{SVG}rect") if e.get("class", "").endswith("-ours")]
    (way,) = parsed(film).iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in way.attrib["points"].split()]
    assert len(ours) == 2
    for lane in ours:
        left, top = float(lane.attrib["x"]), float(lane.attrib["y"])
        right, bottom = left + float(lane.attrib["width"]), top + float(lane.attrib["height"])
        inside = [text for text, x, y, *_ in boxes(film) if left < x < right and top < y < bottom]
        assert inside[0] == f"partition {partition}"
        assert all(top < y < bottom for x, y in points if left < x < right)
    shown = texts(film)
    assert shown.count(f"partition {partition}") == 2
    assert len([text for text in shown if re.match(r"partition \d", text)]) == 2 * min(
        partitions, 5
    )
    assert {"offset 17,402", "offset 34,811"} <= set(shown)


def test_names_are_shown_and_not_obeyed() -> None:
    film = Film(FILMS["hostile"])
    root = parsed(film)
    assert not list(root.iter(f"{SVG}script"))
    assert "<script" not in film.svg
    (title,) = root.iter(f"{SVG}title")
    assert "</text><script>alert('訂單')</script>&\"" in (title.text or "")
    assert not re.search("[\x00\x1b\ud800\u202e]", film.svg)
    assert any(text.startswith("_id: </te") and text.endswith("…") for text in texts(film))


def test_two_films_on_one_page_share_no_name() -> None:
    a, b = Film(trace(*USUAL)), Film(trace(*USUAL, command_offset=17403))
    assert not set(ids(a)) & set(ids(b))
    for film in (a, b):
        own = ids(film)
        assert len(own) == len(set(own))
        (style,) = parsed(film).iter(f"{SVG}style")
        assert style.text
        selectors = re.findall(r"(?:^|})(?!@)([^{}@]+){(?:animation|font)", style.text)
        assert selectors
        assert all(selector.startswith(f"#{own[0]}") for selector in selectors)
        assert set(re.findall(r"@keyframes ([\w-]+)", style.text)) <= set(own)
    assert Film(trace(*USUAL)).svg == a.svg, "a film kept in a repository must not change by itself"


def test_a_refusal_ends_in_the_log_and_changes_no_view() -> None:
    film = Film(FILMS["refused"])
    shown = texts(film)
    assert "refused: no event; 4.10 ms from sent to decided" in shown
    assert {"commit: refused", "was: version 3", "now: unchanged"} <= set(shown)
    assert "The commit is in the log; it changes no view." in shown
    assert not {"3 fetched", "decided → fetched", "fetched → applied"} & set(shown)
    (way,) = parsed(film).iter(f"{SVG}polyline")
    last = float(way.attrib["points"].split()[-1].split(",")[0])
    assert 439 < last < 591, "the message must rest in the events topic"
    read = texts(Film(FILMS["refused, and read"]))
    assert {"fetched → applied", "now: unchanged"} <= set(read)


def test_the_view_is_shown_before_and_after() -> None:
    assert {"was: absent", "now: version 1"} <= set(texts(Film(trace(*USUAL))))
    later = Film(trace(*USUAL, events=("OrderCancelled", "PaymentRefunded"), version=12))
    assert {"was: version 10", "now: version 12"} <= set(texts(later))
    assert "now: not yet" in texts(Film(FILMS["not yet read"]))


def test_without_motion_the_end_stands_still() -> None:
    svg = Film(trace(*USUAL)).svg
    media = "@media screen and (prefers-reduced-motion:no-preference){"
    assert svg.index(media) < svg.index("@keyframes")
    assert "animation" not in svg[: svg.index(media)]
    assert re.search(r'<g opacity="0" id="[^"]+"><rect', svg), "the command has become a commit"
    assert re.search(r'<g transform="translate\(810.5 193\)"', svg), "which is in the view"


def test_quick_ones_are_slowed_down_and_slow_ones_speeded_up() -> None:
    assert "shown 5 times faster" in texts(Film(FILMS["a long queue"]))
    assert "shown 350,000 times slower" in texts(Film(FILMS["in memory"]))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (trace(0, 1), "a film needs sent, polled, decided"),
        (trace(0, 1, 0.5, 2, 3), "must not run backwards"),
        (trace(*USUAL, partition=4), "partition must be 0 to 3, got 4"),
    ],
)
def test_a_trace_that_cannot_be_true_is_refused(broken: Trace, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Film(broken)


def test_it_shows_in_a_notebook_and_is_saved(tmp_path: Path) -> None:
    film = Film(FILMS["hostile"])
    saved = film.save(tmp_path / "a film.svg")
    assert saved.read_text(encoding="utf-8") == film.svg == film._repr_svg_()

"""A run as a drawing: a lane for each life, topic and store; a row for each event."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from labkit.plots.style import BLUE, GREEN, INK, ORANGE, VERMILLION
from labkit.simulation.lives import Event

ROW, TOP, LANE, LEFT = 24, 92, 62, 52
#: Letters of the text beside a row, at most; the whole text is its tooltip.
LETTERS = 74
WORDS = 470
COLOURS = {
    "append": BLUE,
    "committed": GREEN,
    "save": GREEN,
    "answer": INK,
    "fetch": BLUE,
    "claim": ORANGE,
    "fault": VERMILLION,
    "aborted": VERMILLION,
    "anew": ORANGE,
    "happening": ORANGE,
}


def drawn(events: Sequence[Event], left_out: int = 0, ringed: int | None = None) -> str:
    """An SVG without a script; ``left_out`` events came before and are told in a line. The step
    ``ringed`` is the first wrong one."""
    lanes = _lanes(events)
    place = {name: LEFT + LANE * number + LANE // 2 for number, name in enumerate(lanes)}
    words = LEFT + LANE * len(lanes) + 12
    width, height = words + WORDS, TOP + ROW * len(events) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px;width:100%" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(
            f'<rect y="{TOP + ROW * number - ROW // 2}" width="{width}" height="{ROW}" '
            'fill="#f5f5f5"/>'
            for number in range(1, len(events), 2)
        ),
        *_heads(place, height),
    ]
    if left_out:
        parts.append(
            f'<text x="{words}" y="{TOP - 26}" fill="{INK}">{left_out} events before</text>'
        )
    dead: dict[str, int] = {}
    ring = _ringed(events, ringed)
    for number, event in enumerate(events):
        y = TOP + ROW * number
        parts += _row(event, y, place, words)
        if number == ring:
            x = place.get(event.life, LEFT - 12)
            parts.append(
                f'<circle class="wrong" cx="{x}" cy="{y}" r="9" fill="none" '
                f'stroke="{VERMILLION}" stroke-width="2.5"><title>the first wrong step</title>'
                "</circle>"
            )
        if event.kind == "fault" and "killed" in event.text:
            dead[event.life] = y
        elif event.life in dead:
            parts.append(_gap(place[event.life], dead.pop(event.life), y))
    parts += [_gap(place[life], y, height - 10) for life, y in dead.items()]
    return "".join([*parts, "</svg>"])


def _ringed(events: Sequence[Event], step: int | None) -> int | None:
    """The last effect of a step: who reads has none."""
    of_step = [n for n, event in enumerate(events) if event.step == step]
    return max(of_step, key=lambda n: (events[n].kind != "fetch", n), default=None)


def _lanes(events: Sequence[Event]) -> list[str]:
    """Clients, the commands, handlers, the events, all others, the store."""
    lives = dict.fromkeys(event.life for event in events if event.life)
    others = dict.fromkeys(event.other for event in events)
    topics = [name for name in others if name.endswith((".commands", ".events"))]
    clients = [name for name in lives if name.startswith("client")]
    handlers = [name for name in lives if name.startswith("handler")]
    rest = [name for name in lives if name not in (*clients, *handlers)]
    commands = [name for name in topics if name.endswith(".commands")]
    commits = [name for name in topics if name.endswith(".events")]
    store = ["store"] if "store" in others else []
    return [*clients, *commands, *sorted(handlers), *commits, *sorted(rest), *store]


def _heads(place: dict[str, int], height: int) -> Iterator[str]:
    for name, x in place.items():
        yield (
            f'<line x1="{x}" y1="{TOP - 16}" x2="{x}" y2="{height - 10}" stroke="#cccccc" '
            f'stroke-width="{4 if "." in name or name == "store" else 1}"/>'
        )
        yield (
            f'<text transform="translate({x + 4},{TOP - 20}) rotate(-32)" fill="{INK}">'
            f"{html.escape(name)}</text>"
        )


def _row(event: Event, y: int, place: dict[str, int], words: int) -> Iterator[str]:
    colour = COLOURS.get(event.kind, INK)
    x, other = place.get(event.life), place.get(event.other)
    yield f'<text x="6" y="{y + 4}" fill="#777777">{event.step}</text>'
    if x is not None and other is not None:
        start, end = (other, x) if event.kind in ("fetch", "answer") else (x, other)
        yield _arrow(start, end, y, colour)
    if x is not None and event.kind == "fault":
        yield f'<path d="M{x - 6} {y - 6}l12 12m0 -12l-12 12" stroke="{colour}" stroke-width="3"/>'
    elif x is not None:
        yield f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
    text = f"{event.life}: {event.text}" if event.life else event.text
    cut = text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
    ink = colour if event.kind in ("fault", "aborted") else INK
    yield (
        f'<text x="{words}" y="{y + 4}" fill="{ink}"><title>{html.escape(text)}</title>'
        f"{html.escape(cut)}</text>"
    )


def _arrow(start: int, end: int, y: int, colour: str) -> str:
    back = 7 if end > start else -7
    return (
        f'<path d="M{start} {y}H{end - back}" stroke="{colour}" stroke-width="1.5"/>'
        f'<path d="M{end} {y}l{-back} -4v8z" fill="{colour}"/>'
    )


def _gap(x: int, start: int, end: int) -> str:
    """While a life is dead."""
    return (
        f'<line x1="{x}" y1="{start + 8}" x2="{x}" y2="{end - 8}" stroke="#ffffff" '
        f'stroke-width="3"/><line x1="{x}" y1="{start + 8}" x2="{x}" y2="{end - 8}" '
        f'stroke="{VERMILLION}" stroke-dasharray="2 4"/>'
    )

"""What ``labkit verify write`` sends: three services, hot and cold streams, and all that is odd.

Of so many commands, in the order of their sending: 5 % are sent a second time within the next
calls, 1 % are invalid, and 0.1 % are poison: half of it bytes that are no command of the schema,
half commands that meet a bug in a rule (``plants.brittle``); half on streams of their own, half on
hot ones, where others then wait behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from labkit.messages import Command
from labkit.services import bank, inventory, orders

REPEATED = 0.05
INVALID = 0.01
POISON = 0.001
#: A repeat comes so many calls after the first at most.
LATER = 500
HOT = 8
#: The share of commands to inventory and bank that go to hot streams.
HEAT = 0.5
DAYS = ("1997-03-05", "1998-06-30", "1998-07-01", "1999-02-11")
#: The reason of a correction that the planted bug stumbles over.
CURSED = "a count that nobody can explain"


class Call(NamedTuple):
    """A command to send; or, without one, ``raw`` bytes to put under a key of a service's topic."""

    id: str
    command: Command | None
    expected_version: int | None = None
    service: str = ""
    key: str = ""
    raw: bytes = b""

    @property
    def poison(self) -> bool:
        """Whether its stream will be parked."""
        return self.command is None or getattr(self.command, "reason", "") == CURSED


class Mixture:
    """``count`` commands, the same ones for the same seed; a repeat is a call more."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.count = count
        self._rng = Random(seed)
        self._cold = max(HOT, count // 200)
        self._unpaid: list[tuple[str, int]] = []
        self._held: list[tuple[str, str]] = []
        self._number = 0

    def __iter__(self) -> Iterator[Call]:
        rng = self._rng
        again: dict[int, list[Call]] = {}
        for position, call in enumerate(self._calls()):
            yield call
            if call.command is not None and rng.random() < REPEATED:
                later = rng.choice((0, rng.randrange(LATER)))
                again.setdefault(position + later, []).append(call)
            yield from again.pop(position, ())
        for rest in again.values():
            yield from rest

    def _calls(self) -> Iterator[Call]:
        opening = list(self._opening())
        for command in opening[: self.count]:
            yield self._call(command)
        poison = max(4, int(self.count * POISON))
        left = max(0, self.count - len(opening) - poison)
        every = max(1, left // poison)
        for number in range(left):
            if number % every == every // 2 and poison > 0:
                yield self._poison(poison)
                poison -= 1
            yield self._one()
        for number in range(poison):
            yield self._poison(number)

    def _opening(self) -> Iterator[Command]:
        """What makes the others possible: goods and accounts."""
        for product in self._all("p"):
            yield inventory.ReceiveStock(product, 1_000_000 if "hot" in product else 2_000)
        for account in self._all("a"):
            yield bank.OpenAccount(account, f"owner of {account}")
            yield bank.Deposit(account, 10_000_000)

    def _one(self) -> Call:
        rng = self._rng
        if rng.random() < INVALID:
            return self._call(self._invalid())
        kind = rng.choices(
            ("place", "pay", "cancel", "reserve", "settle", "receive", "adjust", "cash", "send"),
            (8, 7, 1, 14, 12, 10, 4, 36, 8),
        )[0]
        product, account = self._pick("p"), self._pick("a")
        pieces, cents = rng.randrange(1, 12), rng.randrange(1, 5_000)
        match kind:
            case "place":
                return self._place(product, pieces, cents)
            case "pay" if self._unpaid:
                order, due = self._unpaid.pop(rng.randrange(len(self._unpaid)))
                return self._call(orders.PayOrder(order, due))
            case "cancel" if self._unpaid:
                order, _ = self._unpaid.pop(rng.randrange(len(self._unpaid)))
                return self._call(orders.CancelOrder(order, "changed my mind"))
            case "reserve":
                held = f"r{self._number}"
                self._held.append((product, held))
                return self._call(inventory.ReserveStock(product, held, pieces))
            case "settle" if self._held:
                place = self._held.pop(rng.randrange(len(self._held)))
                end = rng.choice((inventory.ReleaseStock, inventory.ShipStock))
                return self._call(end(*place))
            case "adjust":
                return self._call(inventory.AdjustStock(product, rng.choice((-1, 1)), "counted"))
            case "cash":
                way = rng.choice((bank.Deposit, bank.Deposit, bank.Withdraw))
                # Few of these guesses are right: of those who guess alike, one wins.
                guess = rng.randrange(2, 6) if rng.random() < 0.1 and "hot" not in account else None
                return self._call(way(account, cents), guess)
            case "send":
                to = self._pick("a") if rng.random() < 0.9 else "nobody"
                to = "nobody" if to == account else to
                return self._call(bank.SendMoney(account, cents, to, f"t{self._number}"))
        return self._call(inventory.ReceiveStock(product, pieces))

    def _place(self, product: str, pieces: int, cents: int) -> Call:
        order, day = f"o{self._number}", self._rng.choice(DAYS)
        # Some products were never received: the process has to call such an order off.
        sold = product if self._rng.random() < 0.95 else "sold out"
        discount = cents // 10 if day >= "1998-07-01" and pieces >= 10 else 0
        self._unpaid.append((order, cents - discount))
        del self._unpaid[:-2_000]
        customer = f"c{self._rng.randrange(500)}"
        return self._call(orders.PlaceOrder(order, customer, day, pieces, cents, sold))

    def _invalid(self) -> Command:
        return self._rng.choice(
            (
                orders.PlaceOrder(f"bad{self._number}", "c1", "1997-02-30", 1, 100),
                orders.PlaceOrder(f"bad{self._number}", "", DAYS[0], 1, 100),
                inventory.ReserveStock(self._pick("p"), f"bad{self._number}", 0),
                inventory.AdjustStock(self._pick("p"), 5, ""),
                bank.Deposit(self._pick("a"), -1),
                bank.Withdraw(self._pick("a"), 10**13),
            )
        )

    def _poison(self, number: int) -> Call:
        """In turn: bytes or a bug, a stream of its own or a hot one, in the three services."""
        own = number % 2 == 0
        self._number += 1
        if number % 4 < 2:
            product = f"own{self._number}" if own else f"hot-p{number % HOT}"
            return self._call(inventory.AdjustStock(product, 1, CURSED))
        service = ("orders", "inventory", "bank")[number % 3]
        key = f"own{self._number}" if own else f"hot-{'a' if service == 'bank' else 'p'}0"
        raw = (b'{"id":"x","body":{"type":"Teleport"}}', b"\xff\x00 not JSON")[number // 4 % 2]
        return Call("", None, None, service, key, raw)

    def _call(self, command: Command, expected_version: int | None = None) -> Call:
        self._number += 1
        return Call(f"v{self._number}", command, expected_version)

    def _all(self, kind: str) -> Iterator[str]:
        yield from (f"hot-{kind}{number}" for number in range(HOT))
        yield from (f"{kind}{number}" for number in range(self._cold))

    def _pick(self, kind: str) -> str:
        if self._rng.random() < HEAT:
            return f"hot-{kind}{self._rng.randrange(HOT)}"
        return f"{kind}{self._rng.randrange(self._cold)}"

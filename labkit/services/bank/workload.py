"""What clients send to the bank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, count
from random import Random

from labkit.messages import Command
from labkit.service import Workload
from labkit.services import cdnow
from labkit.services.bank.messages import Deposit, OpenAccount, SendMoney, Withdraw

HOT, COLD = 8, 200
#: Zipf's deposits are drawn so many at a time.
DRAWS = 1_000


def zipf_opening(random: Random, *, skew: float = 1.0, accounts: int = 1_000) -> Iterator[Command]:
    for number in range(accounts):
        yield OpenAccount(f"a{number + 1}", "load")


def zipf(random: Random, *, skew: float = 1.0, accounts: int = 1_000) -> Iterator[Command]:
    """Deposits to ``accounts`` accounts; account k gets a share of k ** -``skew``."""
    names = [f"a{number + 1}" for number in range(accounts)]
    weights = list(accumulate((number + 1) ** -skew for number in range(accounts)))
    while True:
        for name in random.choices(names, cum_weights=weights, k=DRAWS):
            yield Deposit(name, 1)


def real_opening(random: Random, *, lap: int | None = None) -> Iterator[Command]:
    """An account for each customer of the CDNOW file, or of its first ``lap`` purchases."""
    for customer in dict.fromkeys(bought.customer for bought in cdnow.by_day()[:lap]):
        yield OpenAccount(customer, "load")


def real(random: Random, *, lap: int | None = None) -> Iterator[Command]:
    """The purchases of the CDNOW file by day, as deposits to their customers' accounts."""
    for _, bought in cdnow.forever(lap):
        yield Deposit(bought.customer, max(1, bought.cents))


def new(random: Random) -> Iterator[Command]:
    """New accounts, one after another."""
    for number in count():
        yield OpenAccount(f"n{number}", "ann")


def busy_opening(random: Random) -> Iterator[Command]:
    for account in (*(f"hot-a{n}" for n in range(HOT)), *(f"a{n}" for n in range(COLD))):
        yield OpenAccount(account, f"owner of {account}")
        yield Deposit(account, 10_000_000)


def busy(random: Random) -> Iterator[Command]:
    """Deposits, withdrawals and transfers, half of them of hot accounts; one in 45 commands breaks
    a rule."""
    number = 0
    while True:
        number += 1
        account, cents = _account(random), random.randrange(1, 5_000)
        match random.choices(("cash", "send", "bad"), (36, 8, 1))[0]:
            case "cash":
                way = random.choice((Deposit, Deposit, Withdraw))
                yield way(account, cents)
            case "send":
                to = _account(random) if random.random() < 0.9 else "nobody"
                to = "nobody" if to == account else to
                yield SendMoney(account, cents, to, f"t{number}")
            case _:
                yield random.choice((Deposit(account, -1), Withdraw(account, 10**13)))


def _account(random: Random) -> str:
    if random.random() < 0.5:
        return f"hot-a{random.randrange(HOT)}"
    return f"a{random.randrange(COLD)}"


def cash(random: Random, *, skew: float = 0.0, accounts: int = 200) -> Iterator[Command]:
    """Deposits, and fewer but larger withdrawals, some of which find too little on the account."""
    for deposit in zipf(random, skew=skew, accounts=accounts):
        cents = random.randrange(1, 5_000)
        if random.random() < 0.3:
            yield Withdraw(deposit.stream, 2 * cents)
        else:
            yield Deposit(deposit.stream, cents)


def transfers_opening(random: Random, *, accounts: int = 20) -> Iterator[Command]:
    for number in range(accounts):
        yield OpenAccount(f"a{number + 1}", "load")
        yield Deposit(f"a{number + 1}", 10_000_000)


def transfers(random: Random, *, accounts: int = 20) -> Iterator[Command]:
    """Transfers between two of the accounts, under ids that no other client uses."""
    client = f"{random.getrandbits(64):x}"
    for number in count():
        source, target = random.sample(range(1, accounts + 1), 2)
        cents = random.randrange(1, 5_000)
        yield SendMoney(f"a{source}", cents, f"a{target}", f"{client}-{number}")


WORKLOADS = {
    "zipf": Workload(zipf, zipf_opening),
    "real": Workload(real, real_opening),
    "busy": Workload(busy, busy_opening),
    "new": Workload(new),
    "cash": Workload(cash, zipf_opening),
    "transfers": Workload(transfers, transfers_opening),
}

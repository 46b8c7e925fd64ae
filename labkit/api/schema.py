"""What a request may say and what it is answered: the bodies, the parameters, and their limits.

What is written here stands in ``/openapi.json``, and Schemathesis holds the API to it: all that
fits is taken (or refused by a rule, with 409), all else is turned away with 422.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from fastapi import Header, Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from labkit.messages import Token
from labkit.read.freshness import Strategy
from labkit.read.pages import MAX_PAGE
from labkit.services.bounds import MAX_CENTS, MAX_KEY, MAX_QUANTITY
from labkit.services.services import CONTEXTS

MAX_TEXT = 200
MOST = 2**63 - 1
#: Nobody waits longer, for an answer or for freshness.
MAX_WAIT_SECONDS = 30

#: No control characters, no slash, no dot in front: what a path can hold.
ID = r"^[^\x00-\x1f\x7f/.][^\x00-\x1f\x7f/]*$"
TEXT = r"^[^\x00]*$"
TOKEN = rf"^({'|'.join(CONTEXTS)})-[0-9]{{1,4}}-[0-9]{{1,18}}$"
CURSOR = r"^[A-Za-z0-9_-]+$"


def _whole(value: Any) -> Any:
    """Parameters come as text: a whole number is digits, without blanks or a point.

    In JSON Schema 5.0 is one, too.
    """
    if isinstance(value, str) and not value.removeprefix("-").isdecimal():
        raise ValueError("must be a whole number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _day(value: str) -> str:
    if date.fromisoformat(value).isoformat() != value:
        raise ValueError("must be a date like 1997-01-31")
    return value


#: To be put behind the bounds, or OpenAPI would not show them.
WHOLE = BeforeValidator(_whole)


def written(token: Token) -> str:
    """``orders-3-17``: service, partition and offset of the command."""
    return "-".join(str(part) for part in token)


Id = Annotated[str, Field(min_length=1, max_length=MAX_KEY, pattern=ID)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, pattern=TEXT)]
Reason = Annotated[str, Field(max_length=MAX_TEXT, pattern=TEXT)]
Day = Annotated[str, AfterValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]
Cents = Annotated[int, Field(ge=0, le=MAX_CENTS), WHOLE]
Amount = Annotated[int, Field(ge=1, le=MAX_CENTS), WHOLE]
Pieces = Annotated[int, Field(ge=1, le=MAX_QUANTITY), WHOLE]
Difference = Annotated[int, Field(ge=-MAX_QUANTITY, le=MAX_QUANTITY), WHOLE]


class Body(BaseModel):
    """What is sent: exact types, and no field that nobody knows."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(strict=True, extra="forbid", json_schema_extra={"examples": [fields]})


# --- commands


class NewOrder(Body):
    """Order pieces of a product for ``cents`` in all; without an id it gets one."""

    model_config = _example(
        order_id="o1", customer_id="ann", product_id="cd", quantity=2, cents=2_998, day="1998-06-30"
    )
    order_id: Id | None = None
    customer_id: Id
    product_id: Id = "cd"
    quantity: Pieces
    cents: Cents
    day: Day


class Payment(Body):
    """Exactly what the order costs."""

    model_config = _example(cents=2_998)
    cents: Cents


class Nothing(Body):
    """No field is needed."""


class Cancellation(Body):
    """Why."""

    reason: Reason = ""


class Return(Body):
    """Why, and on which day where the order says for how long it can be returned."""

    reason: Reason = ""
    day: Day | None = None


class Receipt(Body):
    """Pieces that came in."""

    model_config = _example(quantity=100)
    quantity: Pieces


class Adjustment(Body):
    """By how many pieces the books are corrected, up or down."""

    model_config = _example(quantity=-1, reason="counted")
    quantity: Difference
    reason: Text


class NewAccount(Body):
    """An empty account; without an id it gets one."""

    model_config = _example(account_id="a1", owner="ann")
    account_id: Id | None = None
    owner: Id


class Money(Body):
    """How much."""

    model_config = _example(cents=500)
    cents: Amount


class NewTransfer(Body):
    """To which account, and how much; without an id it gets one."""

    model_config = _example(to="a2", cents=100)
    to: Id
    cents: Amount
    transfer_id: Id | None = None


class NewCustomer(Body):
    """A customer; without an id he gets one."""

    model_config = _example(customer_id="ann", name="Ann")
    customer_id: Id | None = None
    name: Text


class NewProduct(Body):
    """A product and its price; without an id it gets one."""

    model_config = _example(product_id="cd", name="A disc", cents=1_499)
    product_id: Id | None = None
    name: Text
    cents: Cents


class Price(Body):
    """Orders that stand keep theirs."""

    model_config = _example(cents=1_299)
    cents: Cents


# --- answers

Count = Annotated[int, Field(ge=0, le=MOST)]


class CommandStatus(BaseModel):
    """What has become of a command.

    ``resource`` is what it is about, ``id`` the id of that, ``version`` its version afterwards.
    """

    token: Annotated[str, Field(pattern=TOKEN)]
    command_id: str
    command: str
    status: Literal["pending", "accepted", "refused", "repeated", "parked", "scheduled", "dropped"]
    id: str
    resource: str
    version: Count | None = None
    reason: str = ""


class Order(BaseModel):
    """An order as its view shows it."""

    order_id: str
    version: Count
    customer: str
    day: str
    product: str
    quantity: int
    cents: int
    discount: int
    return_days: int | None
    status: Literal["placed", "shipped", "cancelled", "returned"]
    payment: Literal["unpaid", "paid", "refunded"]


class Orders(BaseModel):
    """A page of orders."""

    orders: list[Order]


class Stock(BaseModel):
    """The stock of a product, in pieces; what is ``on_hand`` is free."""

    product_id: str
    version: Count
    on_hand: int
    reserved: int
    shipped: int
    received: int
    adjusted: int


class Stocks(BaseModel):
    """A page of stocks."""

    stock: list[Stock]


class Held(BaseModel):
    """What an order holds, or held, of a product."""

    product: str
    quantity: int
    status: Literal["reserved", "released", "shipped"]


class Fulfilment(BaseModel):
    """An order with its goods, across two services; one may be ahead of the other."""

    order: Order | None
    held: list[Held]
    stock: Stock | None


class Account(BaseModel):
    """An account, in cents; ``open`` is what is under way from it."""

    account_id: str
    version: Count
    owner: str
    balance: int
    open: int


class Accounts(BaseModel):
    """A page of accounts."""

    accounts: list[Account]


class Transaction(BaseModel):
    """What changed the balance of an account, and the balance after it."""

    version: Count
    kind: str
    cents: int
    balance: int
    counterparty: str
    transfer_id: str


class Statement(BaseModel):
    """A page of the transactions of an account."""

    transactions: list[Transaction]


class Customer(BaseModel):
    """A customer that is registered."""

    customer_id: str
    version: Count
    name: str


class Totals(BaseModel):
    """What the orders of a customer add up to."""

    customer_id: str
    orders: int
    quantity: int
    cents: int


class Customers(BaseModel):
    """Customers by what they ordered, the best first."""

    customers: list[Totals]


class Product(BaseModel):
    """A product that is listed."""

    product_id: str
    version: Count
    name: str
    cents: int


class Products(BaseModel):
    """All products."""

    products: list[Product]


class ProblemDetails(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str


# --- parameters

OrderId = Annotated[str, Path(min_length=1, max_length=MAX_KEY, pattern=ID)]
ProductId = Annotated[str, Path(min_length=1, max_length=MAX_KEY, pattern=ID)]
AccountId = Annotated[str, Path(min_length=1, max_length=MAX_KEY, pattern=ID)]
CustomerId = Annotated[str, Path(min_length=1, max_length=MAX_KEY, pattern=ID)]
TokenInPath = Annotated[str, Path(pattern=TOKEN, description="As a command's answer gave it.")]

Limit = Annotated[
    int, Field(ge=1, le=MAX_PAGE), WHOLE, Query(description="Rows of the page at most.")
]
AtMost = Annotated[int, Field(ge=0, le=MAX_QUANTITY), WHOLE, Query()]
Cursor = Annotated[
    str | None,
    Query(max_length=4_000, pattern=CURSOR, description="From the `Link` of the page before."),
]
Direction = Annotated[Literal["rising", "falling"], Query()]
Seconds = Annotated[
    float | None,
    Query(ge=0, le=86_400, allow_inf_nan=False, description="End the stream after so long."),
]
Prefer = Annotated[
    str | None,
    Header(
        description=f"`wait=N` (RFC 7240): wait N seconds for the answer, {MAX_WAIT_SECONDS} at "
        "most. Without it, or when they are over: 202.",
        examples=["wait=5"],
        max_length=200,
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="The version that the command is meant for, as an `ETag` gave it; just one.",
        max_length=200,
        examples=['"1"'],
    ),
]
IfNoneMatch = Annotated[
    str | None,
    Header(description="304 where one of these `ETag`s is still true.", max_length=1_000),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Send again with the same key as often as you like: it takes effect once.",
        pattern=r"^[\x21-\x7e]{1,200}$",
        examples=["7d8f1c0e-order-17"],
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="The version of the last update that was seen.", max_length=100),
]
Freshness = Annotated[
    Strategy | None,
    Query(description="`token` and `version` need the parameter of that name, and are implied."),
]
Tokens = Annotated[
    list[Annotated[str, Field(pattern=TOKEN)]] | None,
    Query(max_length=20, description="Show what these commands led to, or more."),
]
AtVersion = Annotated[
    Annotated[int, Field(ge=1, le=MOST), WHOLE] | None,
    Query(description="Show this version, or a later one."),
]
Timeout = Annotated[
    float,
    Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Seconds to wait for it."),
]

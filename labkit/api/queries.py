"""Queries over HTTP: what the views hold, as fresh as the caller asks, and its updates.

The ``ETag`` of a single resource is the version of its stream. Pages go on at ``Link: rel="next"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from labkit.api import openapi, schema
from labkit.api.backend import Backend, Here
from labkit.api.problems import not_found
from labkit.api.request_options import Many, One, OneOptions
from labkit.api.schema import (
    AccountId,
    AtMost,
    Cursor,
    CustomerId,
    Direction,
    LastEventId,
    Limit,
    OrderId,
    ProductId,
    Seconds,
)
from labkit.api.updates import updates
from labkit.ports.store import Document
from labkit.read.freshness import Fresh, Version
from labkit.read.pages import Page
from labkit.services.views import BankViews, InventoryViews, OrderViews

M = TypeVar("M", bound=BaseModel)

router = APIRouter()


def _shaped(model: type[M], d: Document, key: str = "") -> M:
    """The fields of a model from those of a document; ``key`` is its ``_id``."""
    return model(**{name: d["_id" if name == key else name] for name in model.model_fields})


def order(d: Document) -> schema.Order:
    """Of the view's document."""
    return _shaped(schema.Order, d, "order_id")


def stock(d: Document) -> schema.Stock:
    """Of the view's document."""
    return _shaped(schema.Stock, d, "product_id")


def account(d: Document) -> schema.Account:
    """Of the view's document."""
    return _shaped(schema.Account, d, "account_id")


def totals(d: Document) -> schema.Totals:
    """Of the view's sums."""
    return _shaped(schema.Totals, d, "customer_id")


def customer(d: Document) -> schema.Customer:
    """Of the view's document."""
    return schema.Customer(customer_id=d["id"], version=d["version"], name=d["name"])


def product(d: Document) -> schema.Product:
    """Of the view's document."""
    return schema.Product(
        product_id=d["id"], version=d["version"], name=d["name"], cents=d["cents"]
    )


def _one(
    here: Backend,
    wishes: OneOptions,
    service: str,
    stream: str,
    ask: Callable[[Fresh], Document | None],
    shape: Callable[[Document], BaseModel],
) -> Response:
    """One resource with its ETag; 304 where the caller has it, 404 where there is none."""
    version = None if wishes.version is None else Version(service, stream, wishes.version)
    found = ask(here.fresh(wishes, version))
    if found is None:
        raise not_found(f"{shape.__name__} {stream!r}")
    etag = f'"{found["version"]}"'
    if wishes.holds(etag):
        return Response(status_code=304, headers={"ETag": etag})
    return JSONResponse(shape(found).model_dump(), headers={"ETag": etag})


def _many(request: Request, page: Page, name: str, shape: Callable[[Document], Any]) -> Response:
    """A page, with the way to the next one."""
    rows = [shape(row).model_dump() for row in page.rows]
    headers = {}
    if page.cursor:
        kept = [(k, v) for k, v in request.query_params.multi_items() if k != "cursor"]
        query = urlencode([*kept, ("cursor", page.cursor)])
        headers["Link"] = f'<{request.url.path}?{query}>; rel="next"'
    return JSONResponse({name: rows}, headers=headers)


# --- orders


@router.get(
    "/orders/{order_id}",
    operation_id="getOrder",
    response_model=schema.Order,
    responses=openapi.ONE,
    tags=["orders"],
)
def get_order(order_id: OrderId, here: Here, wishes: One) -> Response:
    """One order."""
    ask = here.queries.order
    return _one(here, wishes, "orders", order_id, lambda fresh: ask(order_id, fresh), order)


@router.get(
    "/orders/{order_id}/fulfilment",
    operation_id="getFulfilment",
    response_model=schema.Fulfilment,
    responses=openapi.QUERY,
    tags=["orders"],
)
def get_fulfilment(order_id: OrderId, here: Here, wishes: Many) -> schema.Fulfilment:
    """An order with the goods that it holds, and their stock."""
    found = here.queries.order_with_stock(order_id, here.fresh(wishes))
    if found is None:
        raise not_found(f"order {order_id!r}")
    held = [
        schema.Held(product=h["product"], quantity=h["quantity"], status=h["status"])
        for h in found["held"]
    ]
    return schema.Fulfilment(
        order=order(found["order"]) if found["order"] else None,
        held=held,
        stock=stock(found["stock"]) if found["stock"] else None,
    )


@router.get(
    "/orders/{order_id}/updates",
    operation_id="followOrder",
    response_class=openapi.EventStream,
    responses=openapi.stream("The order as it is, then whenever it changes."),
    tags=["orders"],
)
async def follow_order(
    order_id: OrderId, here: Here, last_event_id: LastEventId = None, seconds: Seconds = None
) -> Response:
    """First the order (`null`: not seen yet), then its updates."""
    watched = {OrderViews.orders: {order_id}}
    ask = here.queries.order
    return await updates(here, watched, lambda: ask(order_id), order, last_event_id, seconds)


@router.get(
    "/customers/{customer_id}/orders",
    operation_id="listOrdersOfCustomer",
    response_model=schema.Orders,
    responses=openapi.LIST,
    tags=["orders"],
)
def orders_of(
    request: Request,
    customer_id: CustomerId,
    here: Here,
    wishes: Many,
    status: Annotated[Literal["placed", "shipped", "cancelled", "returned"] | None, Query()] = None,
    payment: Annotated[Literal["unpaid", "paid", "refunded"] | None, Query()] = None,
    sort: Annotated[Literal["day", "cents"], Query()] = "day",
    direction: Direction = "rising",
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """The orders of a customer, by day or by cents."""
    page = here.queries.orders_of(
        customer_id,
        status=status or "",
        payment=payment or "",
        sort=sort,
        descending=direction == "falling",
        limit=limit,
        cursor=cursor or "",
        fresh=here.fresh(wishes),
    )
    return _many(request, page, "orders", order)


# --- stock


@router.get(
    "/stock",
    operation_id="listLowStock",
    response_model=schema.Stocks,
    responses=openapi.LIST,
    tags=["stock"],
)
def low_stock(
    request: Request,
    here: Here,
    wishes: Many,
    at_most: AtMost = 10,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """The products of which at most so many pieces are free, the fewest first."""
    page = here.queries.low_stock(
        at_most, limit=limit, cursor=cursor or "", fresh=here.fresh(wishes)
    )
    return _many(request, page, "stock", stock)


@router.get(
    "/stock/{product_id}",
    operation_id="getStock",
    response_model=schema.Stock,
    responses=openapi.ONE,
    tags=["stock"],
)
def get_stock(product_id: ProductId, here: Here, wishes: One) -> Response:
    """The stock of one product."""
    ask = here.queries.stock
    return _one(here, wishes, "inventory", product_id, lambda fresh: ask(product_id, fresh), stock)


@router.get(
    "/stock/{product_id}/updates",
    operation_id="followStock",
    response_class=openapi.EventStream,
    responses=openapi.stream("The stock as it is, then whenever it changes."),
    tags=["stock"],
)
async def follow_stock(
    product_id: ProductId, here: Here, last_event_id: LastEventId = None, seconds: Seconds = None
) -> Response:
    """First the stock (`null`: not seen yet), then its updates."""
    watched = {InventoryViews.stock: {product_id}}
    ask = here.queries.stock
    return await updates(here, watched, lambda: ask(product_id), stock, last_event_id, seconds)


# --- accounts


@router.get(
    "/accounts",
    operation_id="listAccounts",
    response_model=schema.Accounts,
    responses=openapi.LIST,
    tags=["accounts"],
)
def balances(
    request: Request, here: Here, wishes: Many, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """All accounts with their balances, by id."""
    page = here.queries.balances(limit=limit, cursor=cursor or "", fresh=here.fresh(wishes))
    return _many(request, page, "accounts", account)


@router.get(
    "/accounts/{account_id}",
    operation_id="getAccount",
    response_model=schema.Account,
    responses=openapi.ONE,
    tags=["accounts"],
)
def get_account(account_id: AccountId, here: Here, wishes: One) -> Response:
    """One account."""
    ask = here.queries.account
    return _one(here, wishes, "bank", account_id, lambda fresh: ask(account_id, fresh), account)


@router.get(
    "/accounts/{account_id}/transactions",
    operation_id="listTransactions",
    response_model=schema.Statement,
    responses=openapi.LIST,
    tags=["accounts"],
)
def statement(
    request: Request,
    account_id: AccountId,
    here: Here,
    wishes: Many,
    direction: Direction = "rising",
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """What changed the balance of an account, in order."""
    page = here.queries.statement(
        account_id,
        descending=direction == "falling",
        limit=limit,
        cursor=cursor or "",
        fresh=here.fresh(wishes),
    )
    return _many(request, page, "transactions", _transaction)


def _transaction(d: Document) -> schema.Transaction:
    return _shaped(schema.Transaction, d)


@router.get(
    "/accounts/{account_id}/updates",
    operation_id="followAccount",
    response_class=openapi.EventStream,
    responses=openapi.stream("The account as it is, then whenever it changes."),
    tags=["accounts"],
)
async def follow_account(
    account_id: AccountId, here: Here, last_event_id: LastEventId = None, seconds: Seconds = None
) -> Response:
    """First the account (`null`: not seen yet), then its updates."""
    watched = {BankViews.accounts: {account_id}}
    ask = here.queries.account
    return await updates(here, watched, lambda: ask(account_id), account, last_event_id, seconds)


# --- customers and products


@router.get(
    "/customers",
    operation_id="listCustomers",
    response_model=schema.Customers,
    responses=openapi.problems(404, 422, 503, 504),
    tags=["catalog"],
)
def customers(here: Here, wishes: Many, limit: Limit = 100) -> schema.Customers:
    """Customers by what their orders add up to, the best first."""
    found = here.queries.customers(limit, here.fresh(wishes))
    return schema.Customers(customers=[totals(d) for d in found])


@router.get(
    "/customers/{customer_id}",
    operation_id="getCustomer",
    response_model=schema.Customer,
    responses=openapi.ONE,
    tags=["catalog"],
)
def get_customer(customer_id: CustomerId, here: Here, wishes: One) -> Response:
    """One registered customer."""
    ask, stream = here.queries.entry, f"customer-{customer_id}"
    return _one(here, wishes, "catalog", stream, lambda fresh: ask(stream, fresh), customer)


@router.get(
    "/customers/{customer_id}/totals",
    operation_id="getTotals",
    response_model=schema.Totals,
    responses=openapi.QUERY,
    tags=["catalog"],
)
def get_totals(customer_id: CustomerId, here: Here, wishes: Many) -> schema.Totals:
    """What the orders of one customer add up to, registered or not."""
    found = here.queries.customer(customer_id, here.fresh(wishes))
    if found is None:
        raise not_found(f"order of customer {customer_id!r}")
    return totals(found)


@router.get(
    "/products",
    operation_id="listProducts",
    response_model=schema.Products,
    responses=openapi.problems(404, 422, 503, 504),
    tags=["catalog"],
)
def products(here: Here, wishes: Many) -> schema.Products:
    """All products."""
    return schema.Products(products=[product(d) for d in here.queries.products(here.fresh(wishes))])


@router.get(
    "/products/{product_id}",
    operation_id="getProduct",
    response_model=schema.Product,
    responses=openapi.ONE,
    tags=["catalog"],
)
def get_product(product_id: ProductId, here: Here, wishes: One) -> Response:
    """One product."""
    ask, stream = here.queries.entry, f"product-{product_id}"
    return _one(here, wishes, "catalog", stream, lambda fresh: ask(stream, fresh), product)

"""Commands over HTTP: a resource for each of them, and one for what has become of it.

A command is answered 202 as soon as the broker has acknowledged it, and not before. With
``Prefer: wait=N`` it is answered when it is handled: 200 or 201 with the version, 409 where a rule
said no. The commands that processes send to each other (reserve, release, receive money, ...) are
not offered: nobody else may be permitted to send them.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from labkit.api import openapi
from labkit.api.backend import Here, new_stream
from labkit.api.request_options import Change, Create
from labkit.api.schema import (
    AccountId,
    Adjustment,
    Cancellation,
    CommandStatus,
    Money,
    NewAccount,
    NewCustomer,
    NewOrder,
    NewProduct,
    NewTransfer,
    Nothing,
    OrderId,
    Payment,
    Price,
    ProductId,
    Receipt,
    Return,
    TokenInPath,
)
from labkit.services.bank import Deposit, OpenAccount, SendMoney, Withdraw
from labkit.services.catalog import ChangePrice, ListProduct, RegisterCustomer
from labkit.services.inventory import AdjustStock, ReceiveStock
from labkit.services.orders import CancelOrder, PayOrder, PlaceOrder, ReturnOrder, ShipOrder

router = APIRouter()

ORDER_NEXT = ("payOrder", "shipOrder", "cancelOrder", "returnOrder", "getFulfilment", "followOrder")
ACCOUNT_NEXT = ("deposit", "withdraw", "transfer", "listTransactions", "followAccount")

ORDER = openapi.command("getOrder", "order_id", then=ORDER_NEXT)
NEW_ORDER = openapi.command("getOrder", "order_id", creates=True, then=ORDER_NEXT)
STOCK = openapi.command("getStock", "product_id", then=("adjustStock", "followStock"))
ACCOUNT = openapi.command("getAccount", "account_id", then=ACCOUNT_NEXT)
NEW_ACCOUNT = openapi.command("getAccount", "account_id", creates=True, then=ACCOUNT_NEXT)
NEW_CUSTOMER = openapi.command("getCustomer", "customer_id", creates=True)
PRODUCT = openapi.command("getProduct", "product_id")
NEW_PRODUCT = openapi.command(
    "getProduct", "product_id", creates=True, then=("changePrice", "receiveStock")
)


# --- orders


@router.post(
    "/orders", operation_id="placeOrder", status_code=201, responses=NEW_ORDER, tags=["orders"]
)
def place(body: NewOrder, here: Here, wishes: Create) -> Response:
    """Place an order."""
    id = new_stream(body.order_id, wishes)
    command = PlaceOrder(id, body.customer_id, body.day, body.quantity, body.cents, body.product_id)
    return here.submit(command, wishes, creates=True)


@router.post(
    "/orders/{order_id}/payment", operation_id="payOrder", responses=ORDER, tags=["orders"]
)
def pay(order_id: OrderId, body: Payment, here: Here, wishes: Change) -> Response:
    """Pay what the order costs."""
    return here.submit(PayOrder(order_id, body.cents), wishes)


@router.post(
    "/orders/{order_id}/shipment", operation_id="shipOrder", responses=ORDER, tags=["orders"]
)
def ship(order_id: OrderId, body: Nothing, here: Here, wishes: Change) -> Response:
    """Send the goods."""
    return here.submit(ShipOrder(order_id), wishes)


@router.post(
    "/orders/{order_id}/cancellation", operation_id="cancelOrder", responses=ORDER, tags=["orders"]
)
def cancel(order_id: OrderId, body: Cancellation, here: Here, wishes: Change) -> Response:
    """Call the order off before it is shipped."""
    return here.submit(CancelOrder(order_id, body.reason), wishes)


@router.post(
    "/orders/{order_id}/return", operation_id="returnOrder", responses=ORDER, tags=["orders"]
)
def send_back(order_id: OrderId, body: Return, here: Here, wishes: Change) -> Response:
    """Send the goods back."""
    return here.submit(ReturnOrder(order_id, body.reason, body.day or ""), wishes)


# --- stock


@router.post(
    "/stock/{product_id}/receipts", operation_id="receiveStock", responses=STOCK, tags=["stock"]
)
def receive(product_id: ProductId, body: Receipt, here: Here, wishes: Change) -> Response:
    """Pieces came in; the first ones make the product known."""
    return here.submit(ReceiveStock(product_id, body.quantity), wishes)


@router.post(
    "/stock/{product_id}/adjustments", operation_id="adjustStock", responses=STOCK, tags=["stock"]
)
def adjust(product_id: ProductId, body: Adjustment, here: Here, wishes: Change) -> Response:
    """Correct the books after a count."""
    return here.submit(AdjustStock(product_id, body.quantity, body.reason), wishes)


# --- accounts


@router.post(
    "/accounts",
    operation_id="openAccount",
    status_code=201,
    responses=NEW_ACCOUNT,
    tags=["accounts"],
)
def open_account(body: NewAccount, here: Here, wishes: Create) -> Response:
    """Open an empty account."""
    return here.submit(
        OpenAccount(new_stream(body.account_id, wishes), body.owner), wishes, creates=True
    )


@router.post(
    "/accounts/{account_id}/deposits", operation_id="deposit", responses=ACCOUNT, tags=["accounts"]
)
def deposit(account_id: AccountId, body: Money, here: Here, wishes: Change) -> Response:
    """Pay in."""
    return here.submit(Deposit(account_id, body.cents), wishes)


@router.post(
    "/accounts/{account_id}/withdrawals",
    operation_id="withdraw",
    responses=ACCOUNT,
    tags=["accounts"],
)
def withdraw(account_id: AccountId, body: Money, here: Here, wishes: Change) -> Response:
    """Pay out."""
    return here.submit(Withdraw(account_id, body.cents), wishes)


@router.post(
    "/accounts/{account_id}/transfers",
    operation_id="transfer",
    responses=ACCOUNT,
    tags=["accounts"],
)
def transfer(account_id: AccountId, body: NewTransfer, here: Here, wishes: Change) -> Response:
    """Send money to another account; if it cannot arrive, it comes back."""
    id = new_stream(body.transfer_id, wishes)
    return here.submit(SendMoney(account_id, body.cents, body.to, id), wishes)


# --- catalog


@router.post(
    "/customers",
    operation_id="registerCustomer",
    status_code=201,
    responses=NEW_CUSTOMER,
    tags=["catalog"],
)
def register(body: NewCustomer, here: Here, wishes: Create) -> Response:
    """Make a customer known."""
    command = RegisterCustomer(new_stream(body.customer_id, wishes), body.name)
    return here.submit(command, wishes, creates=True)


@router.post(
    "/products",
    operation_id="listProduct",
    status_code=201,
    responses=NEW_PRODUCT,
    tags=["catalog"],
)
def list_product(body: NewProduct, here: Here, wishes: Create) -> Response:
    """Offer a product."""
    command = ListProduct(new_stream(body.product_id, wishes), body.name, body.cents)
    return here.submit(command, wishes, creates=True)


@router.put(
    "/products/{product_id}/price",
    operation_id="changePrice",
    responses=PRODUCT,
    tags=["catalog"],
)
def change_price(product_id: ProductId, body: Price, here: Here, wishes: Change) -> Response:
    """Give a product a new price."""
    return here.submit(ChangePrice(product_id, body.cents), wishes)


# --- what has become of a command


@router.get(
    "/commands/{token}",
    operation_id="getCommand",
    response_model=CommandStatus,
    responses=openapi.problems(404, 422, 503),
    tags=["commands"],
)
def command_status(token: TokenInPath, here: Here) -> CommandStatus:
    """What has become of a command."""
    return here.status(token)

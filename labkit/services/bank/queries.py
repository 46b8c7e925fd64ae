"""What the views of the bank answer."""

from __future__ import annotations

from labkit.errors import UsageError
from labkit.messages import Document
from labkit.service import Limit, Page, Query, Views
from labkit.services.bank.views import Accounts, Transactions
from labkit.services.bounds import AccountId


class AccountById(Query, frozen=True):
    """One account with its balance; ``None`` if the view has not seen it."""

    account: AccountId
    path = "/accounts/{account}"

    def read(self, views: Views) -> Document | None:
        """By its id."""
        return views.get(Accounts, self.account)


class Balances(Query, frozen=True):
    """A page of all accounts with their balances, by id."""

    limit: Limit = 100
    cursor: str = ""
    path = "/accounts"

    def read(self, views: Views) -> Page:
        """All of them."""
        return views.page(Accounts, limit=self.limit, cursor=self.cursor)


class Statement(Query, frozen=True):
    """A page of what happened to an account: the oldest first, or the newest."""

    account: AccountId
    order: str = "oldest first"
    limit: Limit = 100
    cursor: str = ""
    path = "/accounts/{account}/transactions"

    def read(self, views: Views) -> Page:
        """By the versions of the account."""
        order = self.order.strip().lower().replace("_", " ").removesuffix(" first")
        if order not in ("oldest", "newest"):
            raise UsageError(f"order must be oldest or newest, got {self.order[:60]!r}")
        return views.page(
            Transactions,
            account=self.account,
            sort="version" if order == "oldest" else "-version",
            limit=self.limit,
            cursor=self.cursor,
        )


QUERIES: list[type[Query]] = [AccountById, Balances, Statement]

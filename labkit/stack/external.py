"""External servers, named by LABKIT_BOOTSTRAP and LABKIT_MONGO_URI."""

import os
import re

from labkit.errors import StackError, Unreachable, UsageError
from labkit.stack.ports import accepts

KAFKA_VARIABLE = "LABKIT_BOOTSTRAP"
MONGO_VARIABLE = "LABKIT_MONGO_URI"


def addresses() -> tuple[str, str] | None:
    """Return (bootstrap, mongo_uri) from the environment, or None if neither is set.

    Raises:
        UsageError: only one is set, or one is not a valid address.
    """
    bootstrap = os.environ.get(KAFKA_VARIABLE, "").strip()
    mongo_uri = os.environ.get(MONGO_VARIABLE, "").strip()
    if not bootstrap and not mongo_uri:
        return None
    for value, name, other in (
        (bootstrap, KAFKA_VARIABLE, MONGO_VARIABLE),
        (mongo_uri, MONGO_VARIABLE, KAFKA_VARIABLE),
    ):
        if not value:
            raise UsageError(f"{other} is set, but {name} is not: set both, or neither")
    for address in bootstrap.split(","):
        match = re.fullmatch(r"[^\s:/]+:(\d{1,5})|\[[0-9a-fA-F:]+\]:(\d{1,5})", address.strip())
        if not match or not 0 < int(match[1] or match[2]) < 65536:
            raise UsageError(f"{KAFKA_VARIABLE} must be host:port[,host:port], got {bootstrap!r}")
    if not mongo_uri.startswith(("mongodb://", "mongodb+srv://")):
        raise UsageError(f"{MONGO_VARIABLE} must begin with mongodb://, got {masked(mongo_uri)!r}")
    return bootstrap, mongo_uri


def masked(uri: str) -> str:
    """Return a URI for display, with the password masked."""
    return re.sub(r"(?<=:)[^:@/]*(?=@)", "***", uri)


def accept(bootstrap: str, mongo_uri: str) -> bool:
    """Return whether one host of each server accepts a TCP connection."""
    from pymongo.errors import PyMongoError
    from pymongo.uri_parser import parse_uri

    try:
        mongo = [(str(host), int(port or 27017)) for host, port in parse_uri(mongo_uri)["nodelist"]]
    except PyMongoError:
        return False
    kafka = [
        (host.strip("[] "), int(port))
        for host, port in (address.rsplit(":", 1) for address in bootstrap.split(","))
    ]
    return all(any(accepts(*address) for address in group) for group in (kafka, mongo))


def check_kafka(bootstrap: str, timeout: float = 8.0) -> None:
    """Check that Kafka answers.

    Raises:
        Unreachable: no broker answers a metadata request within ``timeout`` seconds.
    """
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        client = KafkaAdminClient(
            bootstrap_servers=bootstrap.split(","),
            bootstrap_timeout_ms=int(timeout * 1000),
            request_timeout_ms=int(timeout * 1000),
        )
        try:
            client.describe_cluster()
        finally:
            client.close()
    except (KafkaError, OSError, ValueError) as error:
        raise Unreachable(
            f"no Kafka answers at {bootstrap} ({_short(error)}): start it, or correct "
            f"{KAFKA_VARIABLE}"
        ) from error


def check_mongo(uri: str, timeout: float = 5.0) -> None:
    """Check that MongoDB answers, accepts the credentials and has transactions.

    Raises:
        Unreachable: nothing answers within ``timeout`` seconds.
        StackError: the password is wrong, or the server is not a replica set.
        UsageError: the URI is malformed.
    """
    from pymongo import MongoClient
    from pymongo.errors import (
        ConfigurationError,
        ConnectionFailure,
        InvalidURI,
        OperationFailure,
        PyMongoError,
    )

    shown = masked(uri)
    milliseconds = int(timeout * 1000)
    try:
        with MongoClient[dict[str, object]](
            uri, serverSelectionTimeoutMS=milliseconds, connectTimeoutMS=milliseconds
        ) as client:
            hello = client.admin.command("hello")
            # `hello` needs no credentials; this command does.
            client.admin.command("listDatabases", nameOnly=True)
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise UsageError(f"{MONGO_VARIABLE} is malformed: {shown} ({_short(error)})") from error
    except ConnectionFailure as error:
        raise Unreachable(
            f"no MongoDB answers at {shown} ({_short(error)}): start it, or correct "
            f"{MONGO_VARIABLE}"
        ) from error
    except OperationFailure as error:
        what = "the user or the password is wrong" if error.code == 18 else _short(error)
        raise StackError(
            f"MongoDB at {shown} refuses access ({what}): correct {MONGO_VARIABLE}"
        ) from error
    except PyMongoError as error:
        raise Unreachable(
            f"MongoDB at {shown} fails ({_short(error)}): repair it, or correct {MONGO_VARIABLE}"
        ) from error
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise StackError(
            f"MongoDB at {shown} is neither a replica set nor sharded, so it has no transactions: "
            "start it with --replSet and initiate the replica set"
        )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text.split(", Timeout:")[0] or type(error).__name__)[:200]

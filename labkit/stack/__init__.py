"""The Kafka and MongoDB servers of a lab: native, external, or in containers."""

from labkit.stack.servers import KINDS, Servers, borrowed, down, given, running, status, up
from labkit.stack.state import home

__all__ = ["KINDS", "Servers", "borrowed", "down", "given", "home", "running", "status", "up"]

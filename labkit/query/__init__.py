"""Queries over Kafka: the bus that asks, and the handlers that answer."""

"""The implementations of the ports: Kafka, MongoDB, and their in-memory twins."""

"""The ports: what the core asks of a broker, a store, a clock and an executor."""

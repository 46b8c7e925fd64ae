"""A lab for learning, running and measuring CQRS with event sourcing."""

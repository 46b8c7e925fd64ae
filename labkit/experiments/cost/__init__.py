"""What CQRS costs: the same work by CRUD and by labkit, with the same clients and checkers."""

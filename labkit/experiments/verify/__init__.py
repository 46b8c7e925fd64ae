"""Verify: a load with faults, and the checkers that say whether a guarantee was broken."""

"""Experiments: rows out, checkers on."""

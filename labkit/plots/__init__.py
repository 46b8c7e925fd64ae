"""Plots: data and an ``ax`` in, a labelled ``ax`` out.

A title states the finding. A plot raises ``ValueError`` for empty data. Nothing uses pyplot, so a
plot changes no global state, needs no display, and two threads can draw at once.
"""

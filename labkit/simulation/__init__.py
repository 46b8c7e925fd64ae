"""A seeded world: the parts of a run, unchanged, where one number decides chance, time and faults.

Read it in this order: ``tape`` (every decision), ``world`` (who runs, and virtual time), ``twins``
(a broker and a store whose effects are places of the world), ``faults``, ``scenario`` (what clients
do), ``trial`` (one run, and its verdict), ``shrink``, ``story``, ``explore`` (many trials).
"""

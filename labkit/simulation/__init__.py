"""A seeded world: the parts of a run, unchanged, where one number decides chance, time and faults.

Read it in this order: ``tape`` (every decision), ``world`` (who runs, and virtual time), ``twins``
(a broker and a store whose effects are places of the world), ``faults``, ``scenario`` (what is
sent), ``clients`` (who sends it), ``workforce`` (who works), ``trial`` (one run), ``judging`` (its
verdict), ``shrink``, ``story``, ``explore`` (many trials).
"""

"""The read side: projectors that write the views, and queries that read them."""

"""``labkit bench burst``: what comes of a peak, with and without protection."""

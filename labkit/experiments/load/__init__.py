"""Open-loop load: arrivals, generator, observer, and the conditions of a valid run."""

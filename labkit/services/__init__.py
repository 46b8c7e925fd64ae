"""The built-in services and processes. They are made as anybody's own service is."""

#: The services of a lab that names none.
DEFAULT = ("orders", "catalog")
#: All that are built in.
BUILT_IN = ("orders", "catalog", "inventory", "bank")
PROCESSES = ("fulfilment", "transfer")

"""The built-in services and processes. They are made as anybody's own service is."""

#: The services of a lab that names none.
DEFAULT = ("orders", "catalog")
#: What is loaded, and asked over Kafka, if no service is named.
MEASURED = ("orders", "bank")
#: What ``labkit verify write`` runs if no service is named. The fulfilment calls off unpaid orders
#: after seconds, so that every instance ends.
VERIFIED = ("orders", "inventory", "bank")
VERIFIED_PROCESSES = ("labkit.services.fulfilment:IMPATIENT", "transfer")
#: All that are built in.
BUILT_IN = ("orders", "catalog", "inventory", "bank")
PROCESSES = ("fulfilment", "transfer")

"""The built-in services and processes. They are made as anybody's own service is."""

#: The services of a lab that names none.
DEFAULT = ("orders", "catalog")

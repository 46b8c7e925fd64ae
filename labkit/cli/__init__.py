"""The command line: options, tables and exit codes."""

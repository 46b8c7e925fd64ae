"""The event log: commits of a stream in order, snapshots, and the relay between two logs."""

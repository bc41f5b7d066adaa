"""What the tests stand on: the running fleet, clients of every kind, and the record of what they saw."""

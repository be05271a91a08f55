"""Report what each running replica serves, and where replicas differ: `make inventory`."""

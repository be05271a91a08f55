"""What runs where, asked of every server, and what in it does not agree: `make inventory`."""

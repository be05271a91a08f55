"""Which server serves which artifact, found by trying: `make compatibility`."""

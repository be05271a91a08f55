"""Record which server images can serve which artifacts: `make compatibility`."""

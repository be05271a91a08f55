"""Deploy, canary, promote, and roll back releases in a Kubernetes cluster."""

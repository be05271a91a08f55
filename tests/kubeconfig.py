"""A kubeconfig for tests without a cluster."""

import json
from pathlib import Path


def write_unreachable_kubeconfig(path: Path) -> Path:
    """Write a kubeconfig whose current context names a cluster that refuses connections."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "gone",
        "clusters": [{"name": "gone", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {"token": "none"}}],
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    return path

"""The memory and the model volume of a server: MEMORY=, then k8s/, then the model's size."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from release.kubernetes import manifests as manifests_module
from release.kubernetes.errors import ReleaseError
from release.kubernetes.manifests import ROOT
from release.kubernetes.resources import memory_bytes, set_resources
from tests.manifests import SERVERS, A, manifests_of, named

MIB = 1 << 20
FOLDER = "k8s/model_load/volume"


def deployment(resources: dict[str, Any], size_limit: str | None = None) -> dict[str, Any]:
    empty_dir = {"sizeLimit": size_limit} if size_limit else {}
    containers = [{"name": "server", "resources": resources}]
    volumes = [{"name": "model", "emptyDir": empty_dir}, {"name": "store"}]
    return {"spec": {"template": {"spec": {"containers": containers, "volumes": volumes}}}}


def values(deployment: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the server's resources and the volume of the model."""
    pod = deployment["spec"]["template"]["spec"]
    return pod["containers"][0]["resources"], pod["volumes"][0]["emptyDir"]


@pytest.mark.parametrize(
    ("model_bytes", "memory", "size"),
    [(1, "192Mi", "1024Mi"), (22 * MIB, "194Mi", "1024Mi"), (1000 * MIB, "3128Mi", "2000Mi")],
)
def test_resources_are_computed_from_the_models_size(
    model_bytes: int, memory: str, size: str
) -> None:
    manifest = deployment({"requests": {"cpu": "250m"}})

    lines = set_resources(manifest, model_bytes, None, FOLDER)

    resources, volume = values(manifest)
    assert resources == {
        "requests": {"cpu": "250m", "memory": memory},
        "limits": {"memory": memory},
    }
    assert volume == {"sizeLimit": size}
    assert lines == [
        f"memory: {memory} (computed from the model's size)",
        f"model volume: {size} (computed from the model's size)",
    ]


@pytest.mark.parametrize(
    ("resources", "line"),
    [
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}, "memory: 1Gi"),
        (
            {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}},
            "memory: requests 1Gi, limits 2Gi",
        ),
        ({"limits": {"memory": "2Gi"}}, "memory: limits 2Gi"),
        ({"requests": {"memory": "2Gi"}}, "memory: requests 2Gi"),
    ],
)
def test_values_in_the_manifests_stay_as_the_user_wrote_them(
    resources: dict[str, Any], line: str
) -> None:
    manifest = deployment({**resources}, "3Gi")

    lines = set_resources(manifest, 1000 * MIB, None, FOLDER)

    assert values(manifest) == (resources, {"sizeLimit": "3Gi"})
    assert lines == [f"{line} ({FOLDER})", f"model volume: 3Gi ({FOLDER})"]


def test_the_memory_variable_wins_over_the_manifests() -> None:
    manifest = deployment({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}})

    lines = set_resources(manifest, 1, "512Mi", FOLDER)

    resources, _ = values(manifest)
    assert resources == {"requests": {"memory": "512Mi"}, "limits": {"memory": "512Mi"}}
    assert lines[0] == "memory: 512Mi (MEMORY=)"


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("512Mi", 512 * MIB),
        ("1.5Gi", 1536 * MIB),
        ("600M", 600_000_000),
        ("1048576", MIB),
        ("2000k", 2_000_000),
        ("1T", 10**12),
    ],
)
def test_a_quantity_is_read_as_kubernetes_reads_it(quantity: str, size: int) -> None:
    assert memory_bytes(quantity) == size


@pytest.mark.parametrize("quantity", ["512", "512MB", "512m", "Mi", "-1Gi", "1 Gi", "0Gi", "1KI"])
def test_an_invalid_quantity_is_rejected(quantity: str) -> None:
    """`512` is valid for Kubernetes, but means 512 bytes."""
    with pytest.raises(ReleaseError, match=f"MEMORY: expected .* such as 512Mi.*, got {quantity}"):
        memory_bytes(quantity)


# ---- With the real k8s/


def test_no_folder_of_k8s_has_a_value_that_is_computed() -> None:
    """Such a value would look as if it had an effect."""
    for overlay in SERVERS:
        lines = manifests_of(overlay, A).render("stable").resources
        assert all(line.endswith("(computed from the model's size)") for line in lines), lines


@pytest.mark.parametrize("track", ["stable", "canary"])
def test_a_patch_in_the_folder_of_the_mode_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: Any
) -> None:
    """The user edits k8s/model_load/volume/deployment.yaml; a canary gets the same values."""
    shutil.copytree(ROOT, tmp_path / "k8s")
    file = tmp_path / "k8s" / "model_load" / "volume" / "deployment.yaml"
    patch = yaml.safe_load(file.read_text(encoding="utf-8"))
    pod = patch["spec"]["template"]["spec"]
    pod["containers"] = [{"name": "server", "resources": {"limits": {"memory": "700Mi"}}}]
    pod["volumes"].append({"name": "model", "emptyDir": {"sizeLimit": "5Gi"}})
    file.write_text(yaml.safe_dump(patch), encoding="utf-8")
    monkeypatch.setattr(manifests_module, "ROOT", tmp_path / "k8s")

    objects, lines = manifests_of("model_load/volume", A).render(track)

    (rendered,) = (item for item in objects if item["kind"] == "Deployment")
    pod = rendered["spec"]["template"]["spec"]
    server = named(pod["containers"], "server")
    assert server["resources"] == {"requests": {"cpu": "250m"}, "limits": {"memory": "700Mi"}}
    assert named(pod["volumes"], "model")["emptyDir"] == {"sizeLimit": "5Gi"}
    assert lines == [f"memory: limits 700Mi ({FOLDER})", f"model volume: 5Gi ({FOLDER})"]

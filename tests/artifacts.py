"""Artifacts changed in place, as nobody should: for tests of what is made of that."""

from pathlib import Path

import onnx

from artifact.contract import read_contract
from artifact.verify import sha256_of


def rewrite(artifact: Path, **changed: object) -> None:
    """Write the contract again, other than it was."""
    contract = read_contract(artifact)
    (artifact / "contract.json").write_text(contract.model_copy(update=changed).to_json())


def put_model(artifact: Path, model: onnx.ModelProto | bytes) -> None:
    """Replace the model and make the contract's sha256 and size fit it."""
    path = artifact / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    file = read_contract(artifact).model
    changed = {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    rewrite(artifact, model=file.model_copy(update=changed))


def flipped_byte(artifact: Path) -> None:
    """Damage the model so that its size stays."""
    content = bytearray((artifact / "model.onnx").read_bytes())
    content[-1] ^= 1
    (artifact / "model.onnx").write_bytes(content)


def cut_model(artifact: Path) -> None:
    """Damage the model so that its end is missing."""
    content = (artifact / "model.onnx").read_bytes()
    (artifact / "model.onnx").write_bytes(content[:-1])

"""A model of one's own: an artifact from any ONNX file.

Called by `make contract` through __main__.py. The file's bytes are kept as they are;
only weights that lie in files beside it are brought in.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from rich.console import Console

from artifact.contract import ContractMismatch, Origin, Tensor
from artifact.verify import session_of, tensors_of
from training import provenance as origin
from training.artifact import Artifact, Identity, contract_of
from training.batching import decide
from training.errors import TrainingError
from training.golden_rows import generate_golden_rows, read_golden_rows, refuse_random
from training.progress import Steps, quiet

# A protobuf message, which an ONNX file is, cannot be larger.
MAX_BYTES = 2**31 - 1


def make_contract(  # noqa: PLR0913 - the variables of `make contract`
    *,
    onnx_file: str | Path | None,
    name: str | None,
    version: str,
    store: str | Path,
    purpose: str | None,
    sample: str | Path | None = None,
    labels: str | None = None,
    state: str | None = None,
    batching: str | None = None,
    alias: str | None = None,
    owner: str | None = None,
    console: Console | None = None,
) -> str:
    """Publish an ONNX file with its contract; return the artifact's path or URI.

    sample: an .npz file of golden inputs; without it they are generated. labels: the
    names, separated by commas, of the last dimension of one output. state: inputs,
    separated by commas, that are what an earlier run put out. batching: "true" or "false"
    to override whether requests may share a run. Raises TrainingError,
    and publishes nothing, when an option or the model is not what it must be.
    """
    _refuse_missing(ONNX=onnx_file, NAME=name, PURPOSE=purpose)
    identity = Identity.checked(name or "", version, store, alias)
    path = Path(onnx_file or "")
    steps = Steps(5, console or quiet())
    with steps.step("Read the model") as step:
        model = read_model(path)
        step.result = f"{path}, {len(model)} bytes"
    with steps.step("Open it with ONNX Runtime") as step:
        session = _open(path, model)
        _refuse_unknown_ranks(path, model)
        inputs, outputs = _tensors(path, session)
        inputs, outputs = _with_state(inputs, state), _labelled(outputs, labels)
        step.result = f"{_signatures(inputs)} -> {_signatures(outputs)}"
    with steps.step("Run golden rows") as step:
        run = (
            read_golden_rows(session, inputs, Path(sample))
            if sample
            else generate_golden_rows(session, inputs, _texts_in(model))
        )
        refuse_random(session, run)
        step.result = run.source
    for warning in run.notes:
        steps.warn(f"{warning}. Provide rows of real data: SAMPLE=rows.npz (input name -> array)")
    with steps.step("See whether requests may share a run") as step:
        op_types = (node.op_type for node in _nodes_in(onnx.load_model_from_string(model)))
        decision = decide(session, inputs, outputs, run, op_types=op_types, override=batching)
        step.result = decision.text
    contract = contract_of(
        identity,
        model,
        purpose=purpose or "",
        owner=origin.owner(owner),
        inputs=inputs,
        outputs=outputs,
        batching=decision.batching,
        golden=run.golden_rows([*decision.notes, *run.notes]),
        origin=Origin(
            command=origin.make_command(
                "contract", ONNX=onnx_file, SAMPLE=sample, LABELS=labels, STATE=state,
                BATCHING=batching, NAME=name, VERSION=version, PURPOSE=purpose, OWNER=owner,
            ),
            commit=origin.commit(),
            environment=origin.environment(),
        ),
    )  # fmt: skip
    with steps.step("Publish") as step:
        artifact = Artifact(contract, model)
        location = artifact.publish(identity)
        step.result = location
    artifact.show(location, identity, steps, {})
    return location


def read_model(path: Path) -> bytes:
    """Return the bytes of an ONNX file, with its external weights embedded.

    Raises TrainingError if the file is not an ONNX file, or too large to embed its weights.
    """
    try:
        content = path.read_bytes()
        model = onnx.load_model_from_string(content)
    except OSError as error:
        raise TrainingError(f"{path}: expected an ONNX file: {error.strerror}") from error
    except Exception as error:
        raise TrainingError(f"{path}: expected an ONNX file: {error}") from error
    outside = [tensor for tensor in _tensors_in(model) if uses_external_data(tensor)]
    if not outside:
        return content
    _refuse_too_large(path, len(content), outside)
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise TrainingError(f"{path}: its external data cannot be read: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))


def _refuse_missing(**variables: object) -> None:
    missing = [name for name, value in variables.items() if not str(value or "").strip()]
    if missing:
        raise TrainingError(
            f"{' and '.join(missing)}: expected a value, got none: "
            'make contract ONNX=file.onnx NAME=name VERSION=1 PURPOSE="what it is for"'
        )


def _tensors_in(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant of a model, those of its functions and inner graphs included."""
    yield from model.graph.initializer
    for node in _nodes_in(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer


def _nodes_in(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a model, those of its functions and inner graphs included."""
    nodes = [*model.graph.node, *(node for inner in model.functions for node in inner.node)]
    while nodes:
        node = nodes.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                nodes += graph.node


def _texts_in(model: bytes) -> list[str]:
    """Return the strings that a model contains, such as the categories of an encoder."""
    described = onnx.load_model_from_string(model)
    texts = [text for tensor in _tensors_in(described) for text in tensor.string_data]
    for node in _nodes_in(described):
        texts += [text for attribute in node.attribute for text in attribute.strings]
    return list(dict.fromkeys(text.decode(errors="replace") for text in texts))


def _refuse_too_large(path: Path, size_bytes: int, outside: list[onnx.TensorProto]) -> None:
    files = {
        path.parent / entry.value
        for tensor in outside
        for entry in tensor.external_data
        if entry.key == "location"
    }
    total = size_bytes + sum(file.stat().st_size for file in files if file.is_file())
    if total > MAX_BYTES:
        raise TrainingError(
            f"{path}: expected at most {MAX_BYTES} bytes with its external data, got {total}: an "
            "artifact holds one ONNX file, which cannot be larger. Quantize it or split it."
        )


def _open(path: Path, model: bytes) -> onnxruntime.InferenceSession:
    try:
        return session_of(model)
    except Exception as error:
        raise TrainingError(
            f"{path}: onnxruntime {onnxruntime.__version__} does not load it: "
            f"{' '.join(str(error).split())}"
        ) from error


def _tensors(
    path: Path, session: onnxruntime.InferenceSession
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    try:
        return tensors_of(session)
    except ContractMismatch as mismatch:
        raise TrainingError(f"{path}: {'; '.join(mismatch.differences)}") from mismatch


def _refuse_unknown_ranks(path: Path, model: bytes) -> None:
    """Refuse inputs without a shape: onnxruntime shows them as scalars."""
    unknown = [
        f'"{value.name}"'
        for value in onnx.load_model_from_string(model).graph.input
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    if unknown:
        raise TrainingError(
            f"{path}: input {', '.join(unknown)} has no shape, expected one; a dimension may be "
            "dynamic. Export it with one, or set it with onnx."
        )


def _with_state(inputs: tuple[Tensor, ...], state: str | None) -> tuple[Tensor, ...]:
    """Return the inputs, those marked that are state."""
    names = {name.strip() for name in (state or "").split(",")} - {""}
    if unknown := names - {tensor.name for tensor in inputs}:
        raise TrainingError(
            f"STATE: expected names of inputs, got {', '.join(sorted(unknown))} "
            f"beside {_signatures(inputs)}"
        )
    return tuple(tensor.model_copy(update={"state": tensor.name in names}) for tensor in inputs)


def _labelled(outputs: tuple[Tensor, ...], labels: str | None) -> tuple[Tensor, ...]:
    """Return the outputs, with the labels at the one that has a column for each."""
    if not labels:
        return outputs
    names = tuple(label.strip() for label in labels.split(","))
    if "" in names or len(set(names)) < len(names):
        raise TrainingError(f'LABELS: expected different names, a,b,c, got "{labels}"')
    fitting = [tensor.name for tensor in outputs if tensor.shape and tensor.shape[-1] == len(names)]
    if len(fitting) != 1:
        raise TrainingError(
            f"LABELS: expected one output whose last dimension is {len(names)}, as many as the "
            f"labels given, got {len(fitting) or 'none'} among {_signatures(outputs)}"
        )
    return tuple(
        Tensor(**{**tensor.model_dump(), "labels": names if tensor.name in fitting else ()})
        for tensor in outputs
    )


def _signatures(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f'"{tensor.name}" {tensor.signature}' for tensor in tensors)

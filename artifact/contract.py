"""Define and parse `contract.json`: what training promises and both servers enforce.

A published contract never changes. A change of this schema that older servers cannot read adds a
number to FORMATS; servers read every format in it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

# Format 2 added `batching` and inputs that are optional or state.
FORMATS = (1, 2)
MODEL_FILE = "model.onnx"
CONTRACT_FILE = "contract.json"
# The folder beside the versions of a model.
ALIASES = "aliases"

Array = NDArray[Any]
Dtype = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "string",
]  # fmt: skip
# Lower case, because a name becomes part of an image's name.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$")]
_Identifier = StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")


def _not_the_aliases_folder(version: str) -> str:
    if version == ALIASES:
        raise ValueError('"aliases" is the folder of the aliases; it cannot be a version')
    return version


Version = Annotated[str, _Identifier, AfterValidator(_not_the_aliases_folder)]
Alias = Annotated[str, _Identifier]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ContractMismatch(Exception):  # noqa: N818 - a difference is the result, not a fault of the code
    """An artifact that must not be served, with every difference at once."""

    def __init__(self, subject: str, differences: list[str]) -> None:
        self.subject = subject
        self.differences = differences
        super().__init__(subject, differences)

    def __str__(self) -> str:
        listed = "".join(f"\n  - {difference}" for difference in self.differences)
        return (
            f"ContractMismatch: {self.subject}:{listed}\n"
            "Train again, publish it again, or roll back to the previous version."
        )


class Part(BaseModel):
    """Any part of a contract: immutable, and without unknown fields."""

    # Validators are built on first use: a server only needs the one of Contract, which includes
    # the others.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Feature(Part):
    """One column of an input: its name, its unit, and its range in the training data."""

    name: str
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None


class Tensor(Part):
    """One input or output of the model.

    A dimension is a fixed size, the name of a dynamic dimension, or null if that has no name.
    `features` (inputs) and `labels` (outputs) have an entry for each index of the last dimension.
    An `optional` input may be omitted. A `state` input is an output of an earlier run.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str | None, ...]
    features: tuple[Feature, ...] = ()
    labels: tuple[str, ...] = ()
    optional: bool = False
    state: bool = False

    @model_validator(mode="after")
    def _columns_are_described(self) -> Self:
        for what, described in (("features", self.features), ("labels", self.labels)):
            if described and (not self.shape or len(described) != self.shape[-1]):
                raise ValueError(
                    f'"{self.name}" expected as many {what} as the last dimension of '
                    f"{self.signature}, got {len(described)}"
                )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f'"{self.name}" expected different labels, got {self.labels}')
        return self

    @property
    def signature(self) -> str:
        """Dtype and shape, such as `float32[N,4]`."""
        return f"{self.dtype}{dimensions(self.shape)}"


class ModelFile(Part):
    """The bytes of the model and what a runtime must support to load them."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)
    ir_version: int
    opsets: dict[str, int] = Field(description="operator set domain -> version")


class GoldenRows(Part):
    """One run of the model: inputs, and their outputs during training.

    Arrays are nested lists by tensor name. NaN and infinities are strings, because JSON has no
    numbers for them. Floats agree if |actual - expected| <= atol + rtol * |expected|; values of
    other types agree if they are equal.
    """

    source: str = Field(description="where the inputs come from")
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rtol: Tolerance
    atol: Tolerance


class Dataset(Part):
    """The data that the model was trained on."""

    name: str
    sha256: Sha256
    rows: int


class Agreement(Part):
    """How well ONNX Runtime reproduces scikit-learn on every held-out row."""

    rows: int
    largest_difference: float
    rtol: Tolerance
    atol: Tolerance


class Environment(Part):
    """The exact software that an artifact was created with."""

    python: str
    os: str
    libraries: dict[str, str] = Field(description="package -> version")


class Origin(Part):
    """The provenance of an artifact, and the command that creates it again."""

    command: str
    commit: str | None = None
    dataset: Dataset | None = None
    metrics: dict[str, float] = Field(default={}, description="on held-out rows")
    agreement: Agreement | None = None
    environment: Environment


class Contract(Part):
    """Everything that a server must know about a model before it serves it.

    batching: whether requests may be batched. Format 1 does not have this field: then the
    shapes of the tensors decide.
    """

    format: Literal[1, 2] = 2
    name: Name
    version: Version
    purpose: str
    owner: str
    model: ModelFile
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: bool | None = None
    golden: GoldenRows
    origin: Origin

    @model_validator(mode="after")
    def _golden_rows_cover_every_tensor(self) -> Self:
        if not self.outputs:
            raise ValueError("outputs expected at least one, got none")
        for what, tensors, golden in (
            ("inputs", self.inputs, self.golden.inputs),
            ("outputs", self.outputs, self.golden.outputs),
        ):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) < len(names):
                raise ValueError(f"{what} expected different names, got {names}")
            needed = {tensor.name for tensor in tensors if not tensor.optional}
            if not needed <= set(golden) <= set(names):
                raise ValueError(f"golden {what} expected for {names}, got {sorted(golden)}")
        return self

    @model_validator(mode="after")
    def _batching_is_possible(self) -> Self:
        if self.batching and (why := why_no_batching(self.inputs, self.outputs)):
            raise ValueError(f"batching expected false, got true: {why}")
        return self

    @property
    def batches(self) -> bool:
        """Whether requests may be batched: several share one run of the model."""
        if self.batching is not None:
            return self.batching
        return why_no_batching(self.inputs, self.outputs) is None

    @property
    def required_inputs(self) -> tuple[Tensor, ...]:
        """The inputs that every request must have."""
        return tuple(tensor for tensor in self.inputs if not tensor.optional)

    @property
    def prediction(self) -> Tensor:
        """The output that /predict returns: the one with labels, else the first."""
        return next((output for output in self.outputs if output.labels), self.outputs[0])

    def sample(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first golden row, inputs and outputs as nested lists by name.

        Returns all golden rows if requests cannot be batched: a single row is then not a valid
        input.
        """
        if not self.batches:
            return self.golden.inputs, self.golden.outputs
        inputs, outputs = (
            {name: rows[:1] for name, rows in golden.items()}
            for golden in (self.golden.inputs, self.golden.outputs)
        )
        return inputs, outputs

    def golden_inputs(self) -> dict[str, Array]:
        """Return the golden inputs as arrays of the contract's dtypes, by input name."""
        return arrays(self.inputs, self.golden.inputs)

    def golden_outputs(self) -> dict[str, Array]:
        """Return the golden outputs as arrays of the contract's dtypes, by output name."""
        return arrays(self.outputs, self.golden.outputs)

    def to_json(self) -> str:
        """Return the text of `contract.json`: indented, with one line for each row of numbers."""
        text = json.dumps(self.model_dump(mode="json"), indent=2)
        # JSON strings cannot contain raw line breaks, so this changes only the layout.
        return _INNERMOST_LIST.sub(_on_one_line, text) + "\n"


def why_no_batching(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> str | None:
    """Return why requests cannot be batched; None if the tensors allow it.

    Every tensor must have the same dynamic first dimension, and none may be optional or state. A
    dimension without a name counts as equal to any other.
    """
    if not inputs:
        return "there is no input"
    for tensor in (*inputs, *outputs):
        if not tensor.shape or isinstance(tensor.shape[0], int):
            return f'the first dimension of "{tensor.name}" {tensor.signature} is not dynamic'
        if tensor.state:
            return f'"{tensor.name}" is state'
        if tensor.optional:
            return f'"{tensor.name}" is optional'
    names = {tensor.shape[0] for tensor in (*inputs, *outputs)} - {None}
    if len(names) > 1:
        return f"the first dimensions are not the same: {', '.join(sorted(map(str, names)))}"
    return None


_INNERMOST_LIST = re.compile(r"\[\n[^\[\]{}]*\n *\]")


def _on_one_line(match: re.Match[str]) -> str:
    return "[" + re.sub(r"\s*\n\s*", " ", match[0])[2:-2] + "]"


def dimensions(shape: tuple[int | str | None, ...] | list[Any]) -> str:
    """Return a shape as text, such as `[N,4]`; a dynamic dimension without a name is `?`."""
    return f"[{','.join('?' if size is None else str(size) for size in shape)}]"


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """Return the numpy dtype of a dtype of the contract; strings are objects."""
    return np.dtype(object if dtype == "string" else dtype)


def arrays(tensors: tuple[Tensor, ...], nested: Mapping[str, Any]) -> dict[str, Array]:
    """Convert nested lists from JSON to arrays of the tensors' dtypes.

    Optional tensors may be missing. Raises ValueError that names the tensor if its lists have
    different lengths or its values do not fit the dtype.
    """
    result = {}
    for tensor in tensors:
        if tensor.optional and tensor.name not in nested:
            continue
        try:
            array = np.array(nested[tensor.name], dtype=numpy_dtype(tensor.dtype))
            # Nested lists end at a dimension of 0, so the dimensions behind it are lost.
            result[tensor.name] = array if array.size else array.reshape(_sizes(tensor, array))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f'"{tensor.name}" expected {tensor.signature}: {error}') from error
    return result


def _sizes(tensor: Tensor, array: Array) -> list[int]:
    """Return the shape of an empty array; the contract has the dimensions that its lists lack."""
    missing = [size if isinstance(size, int) else 0 for size in tensor.shape[array.ndim :]]
    return [*array.shape, *missing]


def nested_lists(array: Array) -> Any:
    """Convert an array to nested lists for JSON, with the shortest digits of each float.

    NaN and infinities become strings.
    """
    if array.dtype.kind != "f":
        return array.tolist()
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    values = np.empty(array.size, dtype=object)
    values[:] = [words.get(str(value)) or float(str(value)) for value in array.ravel()]
    return values.reshape(array.shape).tolist()


def read_contract(directory: Path) -> Contract:
    """Read `contract.json` of an artifact.

    Raises ContractMismatch that names every wrong field, or that the file is missing, is not
    JSON, or has an unknown format.
    """
    path = directory / CONTRACT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ContractMismatch(str(directory), [f"{CONTRACT_FILE}: {reason}"]) from error
    return parse_contract(text, str(directory))


def parse_contract(text: str, subject: str) -> Contract:
    """Parse the JSON text of a contract; `subject` names it in errors.

    Raises ContractMismatch as read_contract does.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ContractMismatch(subject, [f"{CONTRACT_FILE}: not JSON: {error}"]) from error
    number = fields.get("format") if isinstance(fields, dict) else None
    # True == 1 in Python, so a boolean would pass the first test.
    if number not in FORMATS or isinstance(number, bool):
        expected = " or ".join(map(str, FORMATS))
        raise ContractMismatch(
            subject, [f"{CONTRACT_FILE}: format expected {expected}, got {json.dumps(number)}"]
        )
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        raise ContractMismatch(
            subject, [f"{CONTRACT_FILE}: {problem}" for problem in problems(error)]
        ) from error


def problems(error: ValidationError) -> list[str]:
    """Return a pydantic error as lines that name field, rule and actual value."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "whole"
        # Objects are omitted: they are long, and the input of a missing field is its parent.
        shown = problem["type"] != "missing" and not isinstance(problem["input"], dict)
        actual = f", got {_shortened(problem['input'])}" if shown else ""
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}{actual}" if problem["loc"] else message)
    return lines


def _shortened(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[:limit] + "…"


if __name__ == "__main__":
    # python -m artifact.contract > artifact/contract.schema.json
    print(json.dumps(Contract.model_json_schema(), indent=2))  # noqa: T201

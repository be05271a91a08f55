"""What training promises and both servers enforce: the schema of `contract.json`.

Written by training, read by verify.py and by everything that describes the model.
A contract never changes once it is published; a change of this schema that an older
server could not read adds to FORMATS, of which a server reads all.
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

# 2: batching, and inputs that are optional or state.
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


def _not_the_folder_of_aliases(version: str) -> str:
    if version == ALIASES:
        raise ValueError('"aliases" is the folder beside the versions; it cannot be one')
    return version


Version = Annotated[str, _Identifier, AfterValidator(_not_the_folder_of_aliases)]
Alias = Annotated[str, _Identifier]
Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ContractMismatch(Exception):  # noqa: N818 - the field's word for it
    """A model that must not be served, with every reason at once."""

    def __init__(self, subject: str, differences: list[str]) -> None:
        self.subject = subject
        self.differences = differences
        super().__init__(subject, differences)

    def __str__(self) -> str:
        listed = "".join(f"\n  - {difference}" for difference in self.differences)
        return (
            f"ContractMismatch: {self.subject}:{listed}\n"
            "Train again, publish it again, or roll back to the version before."
        )


class Part(BaseModel):
    """Any part of a contract: immutable, and without unknown fields."""

    # A validator is made when it is first needed: few are, one is most of what others need.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Feature(Part):
    """One column of an input: what it is, in which unit, and what training saw."""

    name: str
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None


class Tensor(Part):
    """One input or output of the model.

    A dimension is a fixed size, the name of a dynamic one, or null when it has no name.
    `features` (inputs) and `labels` (outputs) describe the last dimension, one each.
    An `optional` input may be left out; one that is `state` is what an earlier run put out.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str | None, ...]
    features: tuple[Feature, ...] = ()
    labels: tuple[str, ...] = ()
    optional: bool = False
    state: bool = False

    @model_validator(mode="after")
    def _one_description_a_column(self) -> Self:
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
        """Dtype and shape as one word, such as `float32[N,4]`."""
        return f"{self.dtype}{dimensions(self.shape)}"


class ModelFile(Part):
    """The bytes of the model and what a runtime must support to load them."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)
    ir_version: int
    opsets: dict[str, int] = Field(description="operator set domain -> version")


class GoldenRows(Part):
    """One run of the model: inputs with the outputs training saw.

    Arrays are nested lists by tensor name; NaN and infinities are strings, since JSON
    has no word for them. Outputs agree when |got - expected| <= atol + rtol * |expected|;
    other types than floats agree when they are equal.
    """

    source: str = Field(description="where the inputs come from")
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    rtol: Tolerance
    atol: Tolerance


class Dataset(Part):
    """What the model was trained on."""

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
    """The exact software an artifact was made with."""

    python: str
    os: str
    libraries: dict[str, str] = Field(description="package -> version")


class Origin(Part):
    """Where the artifact comes from, and how to make it again."""

    command: str
    commit: str | None = None
    dataset: Dataset | None = None
    metrics: dict[str, float] = Field(default={}, description="on held-out rows")
    agreement: Agreement | None = None
    environment: Environment


class Contract(Part):
    """Everything a server must know of a model before it serves it.

    batching: whether rows of different requests may share a run of the model; format 1 did
    not say, and then the tensors decide.
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
    def _golden_rows_for_every_tensor(self) -> Self:
        if not self.outputs:
            raise ValueError("outputs expected one or more, got none")
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
    def _batching_where_it_can_be(self) -> Self:
        if self.batching and (why := why_no_batching(self.inputs, self.outputs)):
            raise ValueError(f"batching expected false, got true: {why}")
        return self

    @property
    def batches(self) -> bool:
        """Whether rows of different requests may share a run of the model."""
        if self.batching is not None:
            return self.batching
        return why_no_batching(self.inputs, self.outputs) is None

    @property
    def required_inputs(self) -> tuple[Tensor, ...]:
        """The inputs that every request has."""
        return tuple(tensor for tensor in self.inputs if not tensor.optional)

    @property
    def prediction(self) -> Tensor:
        """The output that /predict answers: the one with labels, or else the first."""
        return next((output for output in self.outputs if output.labels), self.outputs[0])

    def sample(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first golden row, inputs and outputs as nested lists by name.

        All of them where a row is not answered by itself: such a run cannot be cut.
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
        """Return the text of `contract.json`: indented, one line a row of numbers."""
        text = json.dumps(self.model_dump(mode="json"), indent=2)
        # A JSON string holds no raw line break, so only layout is touched.
        return _INNERMOST_LIST.sub(_on_one_line, text) + "\n"


def why_no_batching(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> str | None:
    """Return why rows of different requests cannot share a run, None if the tensors allow it.

    They may where the first dimension of everything is one and the same dynamic dimension,
    and nothing is state. A dimension without a name counts as the same as any other.
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


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\s*\n\s*", " ", found[0])[2:-2] + "]"


def dimensions(shape: tuple[int | str | None, ...] | list[Any]) -> str:
    """Return a shape as text, such as `[N,4]`; a dynamic dimension without a name is `?`."""
    return f"[{','.join('?' if size is None else str(size) for size in shape)}]"


def numpy_dtype(dtype: Dtype) -> np.dtype[Any]:
    """Return what numpy calls a dtype of the contract; strings are objects."""
    return np.dtype(object if dtype == "string" else dtype)


def arrays(tensors: tuple[Tensor, ...], nested: Mapping[str, Any]) -> dict[str, Array]:
    """Return nested lists, as JSON holds them, as arrays of the tensors' dtypes.

    Optional tensors may be missing. Raises ValueError, naming the tensor, for what is ragged
    or does not fit the dtype.
    """
    made = {}
    for tensor in tensors:
        if tensor.optional and tensor.name not in nested:
            continue
        try:
            array = np.array(nested[tensor.name], dtype=numpy_dtype(tensor.dtype))
            # Lists end at the first dimension of 0.
            made[tensor.name] = array if array.size else array.reshape(_sizes(tensor, array))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f'"{tensor.name}" expected {tensor.signature}: {error}') from error
    return made


def _sizes(tensor: Tensor, array: Array) -> list[int]:
    """Return the shape of an array without values: what lists cannot say is the contract's."""
    unsaid = [size if isinstance(size, int) else 0 for size in tensor.shape[array.ndim :]]
    return [*array.shape, *unsaid]


def nested_lists(array: Array) -> Any:
    """Return an array as nested lists for JSON: the fewest digits that give the same float.

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

    Raises ContractMismatch, naming every field that is wrong, when the file is missing,
    is not JSON, has none of FORMATS, or does not hold what a contract holds.
    """
    path = directory / CONTRACT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ContractMismatch(str(directory), [f"{CONTRACT_FILE}: {reason}"]) from error
    return parse_contract(text, str(directory))


def parse_contract(text: str, subject: str) -> Contract:
    """Return the contract that a JSON text holds; `subject` names it in errors.

    Raises ContractMismatch as read_contract does.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ContractMismatch(subject, [f"{CONTRACT_FILE}: not JSON: {error}"]) from error
    found = fields.get("format") if isinstance(fields, dict) else None
    if found not in FORMATS or isinstance(found, bool):
        expected = " or ".join(map(str, FORMATS))
        raise ContractMismatch(
            subject, [f"{CONTRACT_FILE}: format expected {expected}, got {json.dumps(found)}"]
        )
    try:
        return Contract.model_validate_json(text)
    except ValidationError as error:
        raise ContractMismatch(
            subject, [f"{CONTRACT_FILE}: {problem}" for problem in problems(error)]
        ) from error


def problems(error: ValidationError) -> list[str]:
    """Return a pydantic error as lines that name field, rule and what came."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "whole"
        # A whole object says nothing; a missing field's input is the object around it.
        shown = problem["type"] != "missing" and not isinstance(problem["input"], dict)
        came = f", got {_shortened(problem['input'])}" if shown else ""
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}{came}" if problem["loc"] else message)
    return lines


def _shortened(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[:limit] + "…"


if __name__ == "__main__":
    # python -m artifact.contract > artifact/contract.schema.json
    print(json.dumps(Contract.model_json_schema(), indent=2))  # noqa: T201

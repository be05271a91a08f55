"""Decide whether rows of different requests may share a run of a model.

The tensors must allow it, and the model is tried: each row must get the same outputs alone and
beside other rows, wherever it stands in the run. Dynamically quantised models, for example, round
all rows of a run to one scale.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from artifact.contract import why_no_batching
from training.errors import TrainingError
from training.golden_rows import Run, same
from training.inputs import SEED, Arrays, Inputs, perturbed, try_run

_WORDS = {"true": True, "false": False}
# Rows that are compared in addition to the golden rows. Without float outputs there are more, as
# long as a run stays small: a label seldom shows that the scores behind it changed.
_ROWS, _MAX_ROWS, _MAX_VALUES = 4, 64, 100_000
# Neighbours are larger or smaller by these factors, to change whatever depends on a whole run.
_NEIGHBOURS, _NEIGHBOUR_SCALES = 2, (10.0, 100.0, 0.01)


@dataclass(frozen=True)
class Decision:
    """Whether requests may share a run, and why."""

    batching: bool
    reason: str
    # Whether the reason is a property of the model that the tensors in the contract do not show.
    tried: bool = False

    @property
    def text(self) -> str:
        """The decision for the person who makes the contract."""
        override = " (BATCHING=true overrides)" if self.notes else ""
        return f"{'yes' if self.batching else 'no'}: {self.reason}{override}"

    @property
    def notes(self) -> list[str]:
        """What the contract must say about the decision."""
        return [f"batching is off: {self.reason}"] if self.tried and not self.batching else []


def decide(  # noqa: PLR0913 - everything that is known about the model
    session: onnxruntime.InferenceSession,
    inputs: Inputs,
    outputs: Inputs,
    run: Run,
    *,
    op_types: Iterable[str] = (),
    override: str | None = None,
) -> Decision:
    """Return whether requests may share a run.

    op_types: those of the model's nodes. override: the variable BATCHING, "true" or "false".
    Raises TrainingError for another word, and for "true" if the tensors do not allow it.
    """
    why_not = why_no_batching(inputs, outputs)
    if override:
        if (wanted := _WORDS.get(override.lower())) is None:
            raise TrainingError(f"BATCHING: expected true or false, got {override!r}")
        if wanted and why_not:
            raise TrainingError(f"BATCHING: expected false, got true: {why_not}")
        return Decision(wanted, "as BATCHING says")
    if why_not:
        return Decision(batching=False, reason=why_not)
    why_not = (
        _why_rows_differ(session, inputs, outputs, run.inputs)
        or _why_quantized(op_types)
        or ", ".join(run.unverified.values())
    )
    if why_not:
        return Decision(batching=False, reason=why_not, tried=True)
    about = f"{inputs[0].name} {inputs[0].signature}"
    return Decision(
        batching=True,
        reason=f"each row gets the same outputs alone and beside other rows; {about}",
        tried=True,
    )


@dataclass(frozen=True)
class _Row:
    """One row, with the outputs of a run of this row alone."""

    inputs: Arrays
    outputs: Arrays
    # Whether its outputs must be the same beside other rows.
    compared: bool


def _why_rows_differ(
    session: onnxruntime.InferenceSession, inputs: Inputs, outputs: Inputs, golden: Arrays
) -> str | None:
    """Return why rows cannot share a run, None if each row gets the outputs that it gets alone."""
    lengths = {len(array) for array in golden.values()}
    if len(lengths) > 1:
        return "the inputs have different numbers of golden rows"
    golden_rows = list(_rows(session, golden, compared=True))
    if len(golden_rows) not in lengths:
        return "a golden row does not run alone"
    others = list(_other_rows(session, inputs, outputs, golden))
    if not others:
        return "no rows run except the golden rows"
    rows = [*golden_rows, *others]
    seen: set[int] = set()
    for order in _orders(len(rows)):
        together = [rows[index] for index in order]
        shared = try_run(session, _joined([row.inputs for row in together]))
        if shared is None:
            continue
        seen.update(order)
        if why_not := _why_outputs_differ(together, shared):
            return why_not
    # Rows that never run together say nothing.
    return None if seen.issuperset(range(len(golden_rows))) else "rows do not run together"


def _why_quantized(op_types: Iterable[str]) -> str | None:
    """Return why a dynamically quantised model cannot share runs, None for other models.

    A trial may not show it: the scores of a row change, but a label seldom does.
    """
    dynamic = sorted({op_type for op_type in op_types if op_type.startswith("DynamicQuantize")})
    return f"{', '.join(dynamic)} computes one scale for all rows of a run" if dynamic else None


def _why_outputs_differ(rows: Sequence[_Row], shared: Arrays) -> str | None:
    for name, output in shared.items():
        if len(output) != len(rows):
            return f'output "{name}" has {len(output)} rows for {len(rows)} rows of input'
        for at, row in enumerate(rows):
            if row.compared and not same(output[at : at + 1], row.outputs[name]):
                return "a row's answer depends on the other rows in the run"
    return None


def _other_rows(
    session: onnxruntime.InferenceSession, inputs: Inputs, outputs: Inputs, golden: Arrays
) -> Iterator[_Row]:
    """Yield rows like the golden rows, which are compared, and larger and smaller neighbours.

    The last bits of a float depend on the number of rows in a run. For large values those bits
    exceed the tolerance, so the neighbours are not compared.
    """
    random = np.random.default_rng(SEED)
    count = _ROWS
    if not any(output.dtype.startswith("float") for output in outputs):
        values = sum(array[:1].size for array in golden.values())
        count = max(_ROWS, min(_MAX_ROWS, _MAX_VALUES // max(1, values)))
    repeated = {name: np.resize(array, (count, *array.shape[1:])) for name, array in golden.items()}
    yield from _rows(session, perturbed(inputs, repeated, 1, random), compared=True)
    few = {name: array[:_NEIGHBOURS] for name, array in repeated.items()}
    for scale in _NEIGHBOUR_SCALES:
        yield from _rows(session, perturbed(inputs, few, scale, random), compared=False)


def _rows(
    session: onnxruntime.InferenceSession, arrays: Arrays, *, compared: bool
) -> Iterator[_Row]:
    """Yield each row of some inputs that runs alone."""
    for at in range(min(map(len, arrays.values()))):
        row = {name: array[at : at + 1] for name, array in arrays.items()}
        if (outputs := try_run(session, row)) is not None:
            yield _Row(row, outputs, compared)


def _joined(rows: Sequence[Arrays]) -> Arrays:
    """Return rows as the inputs of one run, joined as a server joins requests."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _orders(count: int) -> Iterator[list[int]]:
    """Yield the rows of each run, by index: every row is first, last, and between other rows.

    One run has a row twice.
    """
    random = np.random.default_rng(SEED)
    yield [*range(count), 0]
    yield [*reversed(range(count))]
    order = random.permutation(count).tolist()
    yield order[: count // 2 + 1]
    yield order[count // 2 :]
    for first, second in zip(order, [*order[1:], order[0]], strict=True):
        yield [first, second]

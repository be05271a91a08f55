"""Load a verified model directory and run predictions with ONNX Runtime.

A Model is immutable. A reload builds a new Model and then swaps the reference, so a request sees
either the old model or the new one, never parts of both.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import onnxruntime

# Private interface of onnxruntime, checked with 1.32.0: the exception classes of a failed run.
# The public package exports none of them, and they have no common base class but Exception,
# which would also catch defects of this server. tests/serving/test_private_interfaces.py fails if
# an upgrade removes them.
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from artifact.contract import CONTRACT_FILE, Array, Contract
from artifact.verify import sha256_of, verified_session
from serving.errors import RequestError
from serving.inference.codecs.open_inference import OpenInferenceCodec
from serving.inference.codecs.rows import RowsCodec, rows_unsupported_reason

_RUN_ERRORS = (InvalidArgument, Fail, RuntimeException)
# onnxruntime has no class for a failed allocation; its message is the only sign.
_OUT_OF_MEMORY = "allocate memory"
# The golden rows are timed up to 10 times or for 2 ms, whichever ends first.
_MAX_TIMED_RUNS, _MAX_TIMING_SECONDS = 10, 0.002


@dataclass(frozen=True)
class Model:
    """An open session that reproduced the golden rows of its contract in this process."""

    directory: Path
    contract: Contract
    session: onnxruntime.InferenceSession
    # None if the model's requests cannot be written as rows of numbers.
    rows_codec: RowsCodec | None
    open_inference_codec: OpenInferenceCodec
    # The model as URL paths name it: `iris` and `iris/versions/1`.
    path_names: frozenset[str]
    # SHA-256 of contract.json. Together with the image digest it identifies the release.
    contract_sha256: str
    # CPU time of a run of the golden rows, divided by their number of input values.
    seconds_per_value: float
    loaded_at: datetime
    load_seconds: float

    @classmethod
    def open(cls, directory: Path, contract: Contract, *, max_rows: int) -> Self:
        """Open the model of an artifact whose files are already verified.

        max_rows: the most rows of a request and of a batch. Raises ContractMismatch with every
        difference between session and contract.
        """
        started = time.perf_counter()
        session = verified_session(contract, directory)
        supports_rows = rows_unsupported_reason(contract) is None
        return cls(
            directory=directory,
            contract=contract,
            session=session,
            rows_codec=RowsCodec(contract, max_rows=max_rows) if supports_rows else None,
            open_inference_codec=OpenInferenceCodec(contract, max_rows=max_rows),
            path_names=frozenset({contract.name, f"{contract.name}/versions/{contract.version}"}),
            contract_sha256=sha256_of(directory / CONTRACT_FILE),
            seconds_per_value=_seconds_per_value(contract, session),
            loaded_at=datetime.now(UTC),
            load_seconds=time.perf_counter() - started,
        )

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Run the model and return the named outputs, in that order.

        inputs: arrays of the contract's dtypes and shapes, by input name. Raises RequestError 400
        if the model fails on their values, which no contract can rule out: an index outside of a
        table, or sizes that do not match each other.
        """
        try:
            results: list[Array] = self.session.run(outputs, inputs)
        except _RUN_ERRORS as error:
            if _OUT_OF_MEMORY in str(error):
                raise  # the server's fault: status 500
            # The session reproduced the golden rows, so these values are the cause.
            raise RequestError(400, "the model cannot run with these values") from error
        return results

    # The contract's properties compute their value on each call. A request reads these two, so
    # they are computed once per model.

    @cached_property
    def batches(self) -> bool:
        """Whether requests are batched, as the contract says."""
        return self.contract.batches

    @cached_property
    def output_names(self) -> list[str]:
        """Names of all outputs, in the contract's order."""
        return [output.name for output in self.contract.outputs]


def count_values(inputs: Mapping[str, Array]) -> int:
    """Return the number of values in all inputs, at least 1."""
    return max(1, sum(array.size for array in inputs.values()))


def _seconds_per_value(contract: Contract, session: onnxruntime.InferenceSession) -> float:
    """Time the golden rows, and divide the shortest run by the number of input values.

    The session is warm: the golden rows have run once before. Even so the first timed runs of a
    small model take up to ten times as long, and an overestimate sends its requests to the thread
    for nothing.
    """
    inputs = contract.golden_inputs()
    durations: list[float] = []
    while len(durations) < _MAX_TIMED_RUNS and sum(durations) < _MAX_TIMING_SECONDS:
        # CPU time of this thread: during a reload, other threads serve requests.
        started = time.thread_time()
        session.run(None, inputs)
        durations.append(time.thread_time() - started)
    return min(durations) / count_values(inputs)

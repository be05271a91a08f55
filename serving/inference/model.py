"""Turn a verified model directory into predictions.

Opened by app.py in each worker, run by runner.py. A Model never changes: a reload builds
a new one and then swaps the reference, so a request sees the old model or the new one,
never half of each.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from artifact.contract import CONTRACT_FILE, Array, Contract
from artifact.verify import sha256_of, verified_session
from serving.errors import RequestError
from serving.http.headers import BINARY, JSON_HEADERS, Headers
from serving.inference.codecs.open_inference import OpenInferenceCodec
from serving.inference.codecs.rows import RowsCodec, rows_unsupported_reason

_RUN_ERRORS = (InvalidArgument, Fail, RuntimeException)
_OUT_OF_MEMORY = "allocate memory"
# To find out what a run costs.
_MOST_TIMES, _TIMING_SECONDS = 10, 0.002


@dataclass(frozen=True)
class Model:
    """An open session that answers the golden rows as its contract says.

    rows: the codec of /predict, None where requests cannot be written as rows. tensors: the
    codec of the Open Inference Protocol. paths: what the model is called in that one's paths.
    headers: what every prediction carries, so that an answer says which model made it, in JSON;
    headers_of_binary: where not all of it is.
    contract_sha256: of contract.json; with an image it is what a release is.
    seconds_per_value: what one value of the golden inputs cost in this process, the session
    being warm.
    """

    directory: Path
    contract: Contract
    session: onnxruntime.InferenceSession
    rows_codec: RowsCodec | None
    open_inference_codec: OpenInferenceCodec
    path_names: frozenset[str]
    headers: Headers
    headers_of_binary: Headers
    contract_sha256: str
    seconds_per_value: float
    loaded_at: datetime
    load_seconds: float

    @classmethod
    def open(cls, directory: Path, contract: Contract, *, max_rows: int) -> Self:
        """Open the model of an artifact whose files were verified.

        Raises ContractMismatch with every difference of the session from the contract.
        """
        started = time.perf_counter()
        session = verified_session(contract, directory)
        about = [
            (b"model-name", contract.name.encode()),
            (b"model-version", contract.version.encode()),
            (b"model-sha256", contract.model.sha256.encode()),
        ]
        return cls(
            directory=directory,
            contract=contract,
            session=session,
            rows_codec=None
            if rows_unsupported_reason(contract)
            else RowsCodec(contract, max_rows=max_rows),
            open_inference_codec=OpenInferenceCodec(contract, max_rows=max_rows),
            path_names=frozenset({contract.name, f"{contract.name}/versions/{contract.version}"}),
            headers=JSON_HEADERS.plus(*about),
            headers_of_binary=Headers(BINARY, *about),
            contract_sha256=sha256_of(directory / CONTRACT_FILE),
            seconds_per_value=_seconds_per_value(contract, session),
            loaded_at=datetime.now(UTC),
            load_seconds=time.perf_counter() - started,
        )

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Return the outputs of these names, in that order.

        inputs: arrays of the contract's dtypes and shapes, by input name. Raises
        RequestError 400 when the model cannot run with their values, which no contract
        can foresee: an index that is out of a table, sizes that do not go together.
        """
        try:
            answered: list[Array] = self.session.run(outputs, inputs)
        except _RUN_ERRORS as error:
            if _OUT_OF_MEMORY in str(error):
                raise
            # The golden rows ran in this process, so it is these values.
            raise RequestError(400, "the model cannot run with these values") from error
        return answered

    @cached_property
    def batches(self) -> bool:
        """Whether requests may share a run, as the contract says."""
        return self.contract.batches

    @cached_property
    def output_names(self) -> list[str]:
        """All outputs, in the contract's order."""
        return [output.name for output in self.contract.outputs]


def _seconds_per_value(contract: Contract, session: onnxruntime.InferenceSession) -> float:
    """Run the golden rows, which ran once already, and share the time among their values.

    The least of a few times: the first ones of a small model take ten times as long, and what
    seems to take long goes to a thread.
    """
    inputs = contract.golden_inputs()
    found: list[float] = []
    while len(found) < _MOST_TIMES and sum(found) < _TIMING_SECONDS:
        # Of this thread alone: a model may be opened while another one answers requests.
        started = time.thread_time()
        session.run(None, inputs)
        found.append(time.thread_time() - started)
    return min(found) / values_in(inputs)


def values_in(inputs: Mapping[str, Array]) -> int:
    """Return how many values are asked for, at least 1."""
    return max(1, sum(array.size for array in inputs.values()))

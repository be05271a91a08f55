"""`make train`: from data to a published artifact.

All options are checked before the first step. Only the last step writes to the store.
"""

from pathlib import Path

import numpy as np
from rich.console import Console
from sklearn.pipeline import Pipeline

from artifact.contract import Agreement, Contract, GoldenRows, Origin, Tensor
from artifact.contract import Dataset as DatasetRecord
from artifact.verify import session_of, tensors_of
from training import dataset as datasets
from training import pipeline, provenance
from training.artifact import Artifact, Identity, contract_of
from training.batching import decide
from training.dataset import Dataset
from training.errors import TrainingError
from training.export import INPUT, Float32Array, check_agreement, to_onnx
from training.golden_rows import Run
from training.pipeline import Split
from training.progress import Steps, quiet

GOLDEN_ROWS = 8
MAX_GOLDEN_ROWS = 32


def train(  # noqa: PLR0913 - the variables of `make train`
    *,
    version: str,
    store: str | Path,
    dataset: str | None = None,
    data: str | Path | None = None,
    target: str | None = None,
    task: str | None = None,
    name: str | None = None,
    alias: str | None = None,
    purpose: str | None = None,
    owner: str | None = None,
    console: Console | None = None,
) -> str:
    """Train, evaluate, export, and publish a model; return the artifact's path or URI.

    dataset: iris, digits, or diabetes. Otherwise data: a CSV file, with `target`, the column to
    predict, and `name`. console: prints each step. Raises TrainingError or StoreError, and
    publishes nothing, if an option, the data, or the model is invalid.
    """
    _reject_contradictions(dataset, data, target, name)
    identity = Identity.checked(name or dataset or "", version, store, alias)
    steps = Steps(6, console or quiet())
    with steps.step("Load the data") as step:
        loaded = _load(dataset, data, target, task)
        step.result = (
            f"{loaded.name}, {len(loaded.rows)} rows, {len(loaded.features)} features; "
            f"{loaded.task}, because {loaded.task_because}"
        )
    command = provenance.make_command(
        "train", DATASET=dataset if not data else None, DATA=data, TARGET=target, TASK=task,
        NAME=name, VERSION=version, PURPOSE=purpose, OWNER=owner,
    )  # fmt: skip
    artifact = _fit_and_export(
        loaded, identity, steps, command=command, purpose=purpose, owner=provenance.owner(owner)
    )
    with steps.step("Publish") as step:
        location = artifact.publish(identity)
        step.result = location
    artifact.show(location, identity, steps, _results(artifact.contract))
    return location


def _reject_contradictions(
    dataset: str | None, data: str | Path | None, target: str | None, name: str | None
) -> None:
    if bool(dataset) == bool(data):
        raise TrainingError(
            "expected DATASET=iris|digits|diabetes or DATA=file.csv, "
            f"got {'both' if dataset else 'neither'}"
        )
    missing = [
        variable for variable, value in (("TARGET", target), ("NAME", name)) if data and not value
    ]
    if missing:
        raise TrainingError(
            f"{' and '.join(missing)}: expected with DATA, got none: "
            "make train DATA=file.csv TARGET=column NAME=name VERSION=1"
        )
    if target and not data:
        raise TrainingError(f'TARGET: expected only with DATA, got "{target}"')


def _load(
    dataset: str | None, data: str | Path | None, target: str | None, task: str | None
) -> Dataset:
    if data and target:
        return datasets.read_csv(Path(data), target, datasets.task_of(task) if task else None)
    loaded = datasets.load(dataset or "")
    if task and task != loaded.task:
        raise TrainingError(f'TASK: expected {loaded.task} of {loaded.name}, got "{task}"')
    return loaded


def _fit_and_export(  # noqa: PLR0913 - facts that only the caller knows
    loaded: Dataset,
    identity: Identity,
    steps: Steps,
    *,
    command: str,
    purpose: str | None,
    owner: str,
) -> Artifact:
    """Fit, evaluate, and export; return the artifact if ONNX Runtime agrees with scikit-learn."""
    with steps.step("Fit the pipeline") as step:
        data = pipeline.split(loaded)
        fitted = pipeline.fit(loaded, data)
        step.result = f"{' + '.join(_step_names(fitted))} on {len(data.rows)} rows"
    with steps.step("Evaluate on held-out rows") as step:
        metrics = pipeline.evaluate(loaded, data, fitted)
        step.result = f"{_format_metrics(metrics)} on {len(data.held_out_rows)} rows"
    with steps.step("Export to ONNX") as step:
        model = to_onnx(loaded, fitted, identity.name)
        step.result = f"{len(model)} bytes"
    with steps.step("Compare ONNX Runtime with scikit-learn") as step:
        agreement = check_agreement(loaded, fitted, model, data.held_out_rows)
        step.result = _format_agreement(agreement)
    inputs, outputs, batching, golden = _describe(loaded, model, _golden_rows(data, loaded), steps)
    contract = contract_of(
        identity,
        model,
        purpose=purpose or loaded.purpose,
        owner=owner,
        inputs=inputs,
        outputs=outputs,
        batching=batching,
        golden=golden,
        origin=Origin(
            command=command,
            commit=provenance.commit(),
            dataset=DatasetRecord(name=loaded.name, sha256=loaded.sha256, rows=len(loaded.rows)),
            metrics=metrics,
            agreement=agreement,
            environment=provenance.environment(),
        ),
    )
    return Artifact(contract, model)


def _describe(
    loaded: Dataset, model: bytes, rows: Float32Array, steps: Steps
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], bool, GoldenRows]:
    """Return inputs and outputs with features and labels, batching, and golden rows.

    Prints a warning if the golden rows verify nothing or requests cannot be batched.
    """
    session = session_of(model)
    (input_,), (output,) = tensors_of(session)
    input_ = Tensor(**{**input_.model_dump(), "features": loaded.features})
    output = Tensor(**{**output.model_dump(), "labels": loaded.labels})
    run = Run.of(session, (input_,), {INPUT: rows}, f"{len(rows)} held-out rows of {loaded.name}")
    decision = decide(session, (input_,), (output,), run)
    notes = [*decision.notes, *run.notes]
    for note in notes:
        steps.warn(note)
    return (input_,), (output,), decision.batching, run.golden_rows(notes)


def _golden_rows(data: Split, loaded: Dataset) -> Float32Array:
    """Return held-out rows, (n, features) float32: one of each label first, then the next rows."""
    first_rows: list[int] = []
    if loaded.labels:
        first_rows = np.unique(data.held_out_targets, return_index=True)[1].tolist()
    order = dict.fromkeys([*sorted(first_rows), *range(len(data.held_out_rows))])
    count = max(GOLDEN_ROWS, min(len(first_rows), MAX_GOLDEN_ROWS))
    return data.held_out_rows[list(order)[:count]].astype(np.float32)


def _step_names(fitted: Pipeline) -> list[str]:
    return [type(step).__name__ for _, step in fitted.steps]


def _format_metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _format_agreement(agreement: Agreement) -> str:
    return f"differ by at most {agreement.largest_difference:.2g} on {agreement.rows} rows"


def _results(contract: Contract) -> dict[str, str]:
    facts = {name: f"{value:.4g}" for name, value in contract.origin.metrics.items()}
    if contract.origin.agreement:
        facts["largest difference"] = f"{contract.origin.agreement.largest_difference:.2g}"
    return facts

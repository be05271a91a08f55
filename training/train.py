"""One training from beginning to end: data in, an artifact in the store out.

Called by `make train` through __main__.py, and by tests. Everything that an option can
have wrong is refused before the first step; only the last step writes.
"""

from pathlib import Path

import numpy as np
from rich.console import Console
from sklearn.pipeline import Pipeline

from artifact.contract import Agreement, Contract, GoldenRows, Origin, Tensor
from artifact.contract import Dataset as Trained
from artifact.verify import session_of, tensors_of
from training import dataset as datasets
from training import pipeline
from training import provenance as origin
from training.artifact import Artifact, Identity, contract_of
from training.batching import decide
from training.dataset import Dataset
from training.errors import TrainingError
from training.export import INPUT, Float32Array, check_agreement, to_onnx
from training.golden_rows import Run
from training.pipeline import Split
from training.progress import Steps, quiet

GOLDEN_ROWS = 8
MOST_GOLDEN_ROWS = 32


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
    """Train, evaluate, export and publish a model; return the artifact's path or URI.

    dataset: iris, digits or diabetes; or else data: a CSV file, with its target column
    and a name. Shows its steps on the console, if there is one. Raises TrainingError, and
    publishes nothing, when an option, the data or the model is not what it must be.
    """
    _refuse_contradictions(dataset, data, target, name)
    identity = Identity.checked(name or dataset or "", version, store, alias)
    steps = Steps(6, console or quiet())
    with steps.step("Load the data") as step:
        loaded = _load(dataset, data, target, task)
        step.found = (
            f"{loaded.name}, {len(loaded.rows)} rows, {len(loaded.features)} features; "
            f"{loaded.task}, because {loaded.task_because}"
        )
    again = origin.make_command(
        "train", DATASET=dataset if not data else None, DATA=data, TARGET=target, TASK=task,
        NAME=name, VERSION=version, PURPOSE=purpose, OWNER=owner,
    )  # fmt: skip
    artifact = _make(
        loaded, identity, steps, command=again, purpose=purpose, owner=origin.owner(owner)
    )
    with steps.step("Publish") as step:
        location = artifact.publish(identity)
        step.found = location
    artifact.show(location, identity, steps, _results(artifact.contract))
    return location


def _refuse_contradictions(
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


def _make(  # noqa: PLR0913 - the facts that only the caller knows
    loaded: Dataset,
    identity: Identity,
    steps: Steps,
    *,
    command: str,
    purpose: str | None,
    owner: str,
) -> Artifact:
    """Fit, evaluate and export; return the artifact when ONNX Runtime and scikit-learn agree."""
    with steps.step("Fit the pipeline") as step:
        data = pipeline.split(loaded)
        fitted = pipeline.fit(loaded, data)
        step.found = f"{' + '.join(_names(fitted))} on {len(data.rows)} rows"
    with steps.step("Evaluate on held-out rows") as step:
        metrics = pipeline.evaluate(loaded, data, fitted)
        step.found = f"{_listed(metrics)} on {len(data.held_out_rows)} rows"
    with steps.step("Export to ONNX") as step:
        model = to_onnx(loaded, fitted, identity.name)
        step.found = f"{len(model)} bytes"
    with steps.step("Compare ONNX Runtime with scikit-learn") as step:
        agreement = check_agreement(loaded, fitted, model, data.held_out_rows)
        step.found = _differ(agreement)
    inputs, outputs, batching, golden = _described(loaded, model, _golden_rows(data, loaded), steps)
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
            commit=origin.commit(),
            dataset=Trained(name=loaded.name, sha256=loaded.sha256, rows=len(loaded.rows)),
            metrics=metrics,
            agreement=agreement,
            environment=origin.environment(),
        ),
    )
    return Artifact(contract, model)


def _described(
    loaded: Dataset, model: bytes, rows: Float32Array, steps: Steps
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], bool, GoldenRows]:
    """Return a model's tensors with the meaning of their columns, batching, and golden rows.

    Shows a warning if the golden rows verify nothing or requests may not share a run.
    """
    session = session_of(model)
    (into,), (out,) = tensors_of(session)
    into = Tensor(**{**into.model_dump(), "features": loaded.features})
    out = Tensor(**{**out.model_dump(), "labels": loaded.labels})
    run = Run.of(session, (into,), {INPUT: rows}, f"{len(rows)} held-out rows of {loaded.name}")
    decision = decide(session, (into,), (out,), run)
    notes = [*decision.notes, *run.notes]
    for note in notes:
        steps.warn(note)
    return (into,), (out,), decision.batching, run.golden_rows(notes)


def _golden_rows(data: Split, loaded: Dataset) -> Float32Array:
    """Return some held-out rows, (n, features): one of each label first, then the next ones."""
    first_of_each: list[int] = []
    if loaded.labels:
        first_of_each = np.unique(data.held_out_targets, return_index=True)[1].tolist()
    order = dict.fromkeys([*sorted(first_of_each), *range(len(data.held_out_rows))])
    most = max(GOLDEN_ROWS, min(len(first_of_each), MOST_GOLDEN_ROWS))
    return data.held_out_rows[list(order)[:most]].astype(np.float32)


def _names(fitted: Pipeline) -> list[str]:
    return [type(part).__name__ for _, part in fitted.steps]


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _differ(agreement: Agreement) -> str:
    return f"differ by at most {agreement.largest_difference:.2g} on {agreement.rows} rows"


def _results(contract: Contract) -> dict[str, str]:
    facts = {name: f"{value:.4g}" for name, value in contract.origin.metrics.items()}
    if contract.origin.agreement:
        facts["largest difference"] = f"{contract.origin.agreement.largest_difference:.2g}"
    return facts

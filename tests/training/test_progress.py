"""What is shown while a training runs."""

import io

import pytest
from rich.console import Console

from training.progress import Steps


def test_a_log_gets_one_whole_line_a_step() -> None:
    """Not a terminal: no spinner, no colours, no line breaks in long paths."""
    text = io.StringIO()
    steps = Steps(2, Console(file=text, width=20))
    with steps.step("Load") as step:
        assert text.getvalue() == "[1/2] Load: "
        step.result = "/a/long/path/[with]/brackets.csv"
    with steps.step("Fit"):
        pass
    first, second = text.getvalue().splitlines()
    assert first.startswith("[1/2] Load: /a/long/path/[with]/brackets.csv (")
    assert second.startswith("[2/2] Fit: ")


def test_a_failed_step_is_reported_as_failed() -> None:
    text = io.StringIO()
    with pytest.raises(ValueError, match="no"), Steps(1, Console(file=text)).step("Fit"):
        raise ValueError("no")
    assert text.getvalue() == "[1/1] Fit: failed\n"


def test_a_terminal_keeps_the_line_of_a_finished_step() -> None:
    text = io.StringIO()
    steps = Steps(1, Console(file=text, force_terminal=True, width=80))
    with steps.step("Load") as step:
        step.result = "150 rows"
    assert "[1/1] Load: 150 rows" in text.getvalue()

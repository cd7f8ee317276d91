"""Runs docs/examples/on_demand.py as a user does, and with an engine that frees weights which are in use."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ON_DEMAND = Path(__file__).parent.parent / "docs" / "examples" / "on_demand.py"

TORN_DOWN = "models torn down under a request"
ROWS = ["", "loads", "evictions", "wait, median (ms)", "wait, 99th percentile (ms)", "hit rate", TORN_DOWN]


def run(*arguments: str) -> tuple[int, list[str], str]:
    command = [sys.executable, str(ON_DEMAND), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr


def table(lines: list[str]) -> dict[str, list[str]]:
    """Return the two columns of the table at the end of the output, by row."""
    return {line[:32].strip(): [line[32:46].strip(), line[46:].strip()] for line in lines[-len(ROWS) :]}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What a small simulation prints."""
    code, lines, errors = run("--requests", "60", "--adapters", "12", "--capacity", "3", "--workers", "6")
    assert (code, errors) == (0, "")
    return lines


def test_the_loader_tears_no_model_down_under_a_request(lines: list[str]) -> None:
    rows = table(lines)
    assert list(rows) == ROWS
    assert rows[""] == ["ModelLoader", "plain LRU cache"]
    assert rows[TORN_DOWN][0] == "0"
    for loads, evictions in zip(rows["loads"], rows["evictions"]):
        assert int(loads) >= 1
        assert 0 <= int(evictions) <= int(loads)
    for rate in rows["hit rate"]:
        assert re.fullmatch(r"\d+\.\d%", rate)
        assert 0 <= float(rate[:-1]) <= 100
    for median, percentile in zip(rows["wait, median (ms)"], rows["wait, 99th percentile (ms)"]):
        assert 0 <= float(median) <= float(percentile)


def test_progress_is_printed_for_each_tenth_of_the_requests(lines: list[str]) -> None:
    for title, progress in (("ModelLoader", lines[:10]), ("plain LRU cache", lines[10 : -len(ROWS)])):
        pattern = rf"{title} +(\d+) requests +\d+ loads +\d+ evictions  hit rate +\d+\.\d%"
        matches = [re.fullmatch(pattern, line) for line in progress]
        assert [match and int(match[1]) for match in matches] == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]


def test_an_adapter_that_fits_is_loaded_once_and_never_evicted() -> None:
    code, lines, _ = run("--requests", "20", "--adapters", "1", "--capacity", "1")
    assert code == 0
    rows = table(lines)
    assert rows["loads"] == ["1", "1"]
    assert rows["evictions"] == rows[TORN_DOWN] == ["0", "0"]


def test_weights_that_are_freed_during_a_request_are_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("on_demand", ON_DEMAND)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run_request = module.Engine.run

    def free_and_run(engine: Any, weights: Any, seconds: float) -> bool:
        engine.unload(weights).result()
        freed: bool = run_request(engine, weights, seconds)
        return freed

    monkeypatch.setattr(module.Engine, "run", free_and_run)
    assert module.main(["--requests", "20"]) == 1
    assert table(capsys.readouterr().out.splitlines())[TORN_DOWN] == ["20", "20"]


@pytest.mark.parametrize("arguments", [("--workers", "0"), ("--seed", "many"), ("--broken",)], ids=" ".join)
def test_a_wrong_option_is_answered_with_the_usage(arguments: tuple[str, ...]) -> None:
    code, lines, message = run(*arguments)
    assert (code, lines) == (2, [])
    assert message.startswith("usage: on_demand.py")

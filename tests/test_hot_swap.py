"""Runs docs/examples/hot_swap.py as a user does, and with what must not go unnoticed."""

import importlib.util
import itertools
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from bonsai_routing import LoraAdapter, ModelRouter

HOT_SWAP = Path(__file__).parent.parent / "docs" / "examples" / "hot_swap.py"

# Long enough for some dozens of changes, in seconds.
SHORT = 0.5


@pytest.fixture
def hot_swap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hot_swap", HOT_SWAP)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> tuple[int, list[str], str]:
    command = [sys.executable, str(HOT_SWAP), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_nothing_runs_on_weights_that_were_released() -> None:
    code, lines, errors = run("--seconds", str(SHORT), "--workers", "8", "--seed", "1")
    assert (code, errors) == (0, "")
    requests = re.fullmatch(r"(\d+) requests ran, and \d+ came while their adapter was away", lines[-3])
    changes = re.fullmatch(r"(\d+) swaps and (\d+) retirements happened, and 0 never became idle", lines[-2])
    assert requests
    assert changes
    assert all(int(number) > 0 for number in (*requests.groups(), *changes.groups()))
    assert lines[-1] == "nothing ran on weights that had been released"


def test_progress_is_printed_as_it_goes_and_some_loads_fail_on_purpose() -> None:
    _, lines, _ = run("--seconds", str(SHORT))
    progress = [line for line in lines if re.fullmatch(r" *\d+\.\d\d s +\d+ requests +\d+ swaps \d+ draining", line)]
    failures = [line for line in lines if re.fullmatch(r" +load failed: adapters/[a-z]+-\d*7 is damaged", line)]
    assert len(progress) > 1
    assert len(failures) > 0
    assert len(progress) + len(failures) + 3 == len(lines)


def test_an_engine_that_does_not_wait_is_found_out(hot_swap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    engine = hot_swap.Engine()
    load = engine.load

    def load_and_release_the_others(source: str) -> str:
        handle: str = load(source)
        engine.held.intersection_update({handle})
        return handle

    engine.load = load_and_release_the_others
    assert not hot_swap.Simulation(engine, workers=4, seed=0).run(SHORT)
    assert re.search(r"^[1-9]\d* ran on weights that had been released$", capsys.readouterr().out, re.MULTILINE)


def test_a_lease_that_does_not_end_is_found_out(hot_swap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    simulation = hot_swap.Simulation(hot_swap.Engine(), workers=1, seed=0)
    simulation.change(LoraAdapter("code", "bonsai-8b", "adapters/code-0"), retire=False)
    with ModelRouter(simulation.models).lease("bonsai-8b:code"):
        assert not simulation.run(SHORT)
        assert "adapters/code-0" in simulation.engine.held
    assert "adapters/code-0" not in simulation.engine.held
    assert ", and 1 never became idle\n" in capsys.readouterr().out


def test_an_interrupt_ends_it_early_and_leaves_no_thread(
    hot_swap: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = hot_swap.Engine()
    loads, load = itertools.count(1), engine.load

    def interrupted_at_the_tenth(source: str) -> str:
        if next(loads) == 10:
            raise KeyboardInterrupt
        handle: str = load(source)
        return handle

    engine.load = interrupted_at_the_tenth
    threads = threading.active_count()
    assert hot_swap.Simulation(engine, workers=4, seed=0).run(3600)
    assert threading.active_count() == threads
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == "interrupted"
    assert lines[-1] == "nothing ran on weights that had been released"


@pytest.mark.parametrize("arguments", [("--workers", "0"), ("--seconds", "long"), ("--broken",)], ids=" ".join)
def test_a_wrong_option_is_answered_with_the_usage(arguments: tuple[str, ...]) -> None:
    code, lines, message = run(*arguments)
    assert (code, lines) == (2, [])
    assert message.startswith("usage: hot_swap.py")

"""The command ``python -m bonsai_routing``."""

import subprocess
import sys
from pathlib import Path

import pytest

from bonsai_routing import RoutingConfig
from bonsai_routing.__main__ import main

CONFIG = """\
schema = 1
default = "chat"

[[endpoints]]
id = "v1"
base_model = "qwen3-8b"
max_context_length = 32768

[[endpoints]]
id = "v2"
base_model = "qwen3-8b-new"
max_context_length = 8192

[[endpoints]]
id = "v3"
base_model = "qwen3-32b"
max_context_length = 8192
status = "disabled"

[aliases]
chat = ["v3", "v2", "v1"]
split = [{ "v1" = 90, "v2" = 10 }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Return the exit status of the command and the lines that it prints."""
    status = main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, printed.out.splitlines()


def test_check_prints_a_summary(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert run(capsys, "check", file) == (0, [f"{file} is valid. Endpoints: 3, adapters: 0, aliases: 2, default: chat"])
    file.write_text(CONFIG.replace('default = "chat"\n', ""), encoding="utf-8")
    assert run(capsys, "check", file) == (0, [f"{file} is valid. Endpoints: 3, adapters: 0, aliases: 2, default: none"])


def test_check_prints_every_problem_on_its_line(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    file.write_text(CONFIG.replace('id = "v1"', 'id = "v4"').replace("schema = 1", "schema = 2"), encoding="utf-8")
    status, lines = run(capsys, "check", file)
    assert status == 1
    assert lines == [
        f"{file}: schema must be 1, not 2",
        f"{file}: aliases.chat points to 'v1', which is not an id",
        f"{file}: aliases.split points to 'v1', which is not an id",
    ]


@pytest.mark.parametrize("command", [["check"], ["route"]])
def test_a_file_that_cannot_be_read_is_a_problem(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "missing.toml"
    status, lines = run(capsys, *command, path, *(["v1"] if command == ["route"] else []))
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith(f"{path}: ")


def test_route_prints_who_may_answer_and_why_the_others_may_not(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert run(capsys, "route", file, "chat") == (
        0,
        [" 1  v2  8192 tokens", " 2  v1  32768 tokens", " -  v3  disabled"],
    )
    assert run(capsys, "route", file, "chat", "--tokens", 10_000) == (
        0,
        [" 1  v1  32768 tokens", " -  v3  disabled", " -  v2  a context of 8192 tokens"],
    )
    assert run(capsys, "route", file, "v2") == (0, [" 1  v2  8192 tokens"])


def test_route_orders_weights_by_the_key(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    seen = set()
    for number in range(100):
        first, again = (run(capsys, "route", file, "split", "--key", f"user-{number}") for _ in range(2))
        assert first == again
        seen.add(first[1][0])
    assert seen == {" 1  v1  32768 tokens", " 1  v2  8192 tokens"}


def test_route_fails_if_nobody_may_answer(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert run(capsys, "route", file, "v3") == (1, [" -  v3  disabled"])
    assert run(capsys, "route", file, "chat", "--tokens", 99_999)[0] == 1
    assert run(capsys, "route", file, "v4") == (1, ["model 'v4' not found"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check"],
        ["route", "FILE"],
        ["route", "FILE", "chat", "--tokens", "-1"],
        ["route", "FILE", "x", "--tokens", "1.5"],
    ],
)
def test_a_wrong_use_is_told_so(capsys: pytest.CaptureFixture[str], file: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(file) if argument == "FILE" else argument for argument in arguments])
    assert caught.value.code == 2
    assert "usage: python -m bonsai_routing" in capsys.readouterr().err


def test_the_module_is_a_command(file: Path) -> None:
    file.write_text(CONFIG.replace("v1", "模型"), encoding="utf-8")
    assert RoutingConfig.read(file)
    for arguments, status in ((["check", file], 0), (["route", file, "chat"], 0), (["route", file, "v3"], 1)):
        command = [sys.executable, "-m", "bonsai_routing", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, encoding="ascii", env={"PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (status, "")
    assert (
        "\\u6a21\\u578b"
        in subprocess.run(
            [sys.executable, "-m", "bonsai_routing", "route", file, "chat"],
            capture_output=True,
            encoding="ascii",
            env={"PYTHONIOENCODING": "ascii"},
            check=True,
        ).stdout
    )

"""Runs docs/examples/quickstart.py as a user does."""

import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parent.parent / "docs" / "examples" / "quickstart.py"

MALFORMED = rb"""[1]
not json
{"model": 1, "messages": []}
{"model": "bonsai-8b"}

{"messages": [{"role": "user", "content": 3}]}
{"messages": [], "max_tokens": "many"}
{"messages": [], "max_tokens": -1}
{"model": "\ud800", "messages": []}
{"model": "bonsai-8b", "messages": [{"role": "assistant", "content": null}]}
"""


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, list[str], str]:
    command = [sys.executable, str(QUICKSTART), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


def test_each_request_is_answered_or_refused_for_its_reason() -> None:
    code, lines, _ = run()
    assert code == 0
    assert [line.split() for line in lines[1:7]] == [
        ["bonsai-8b", "qwen3-8b", "-", "32768"],
        ["bonsai-8b:code", "qwen3-8b", "code", "32768"],
        ["gpt-4o-mini", "qwen3-8b", "chat", "32768"],
        ["programmer", "qwen3-8b", "code", "32768"],
        ["(nothing)", "qwen3-8b", "-", "32768"],
        ["(nothing)", "qwen3-70b", "-", "131072"],
    ]
    assert lines[7].endswith("ModelNotFoundError: model 'bonsai-8b:cod' not found")
    assert "ContextTooLongError: model 'bonsai-8b' cannot handle context length 4" in lines[8]
    assert lines[9].endswith("ModelNotReadyError: model 'bonsai-70b:law' is not ready (status: loading)")
    assert lines[10:] == ["6 answered, 3 refused, 0 malformed"]


def test_the_table_is_aligned() -> None:
    _, lines, _ = run()
    assert {line.index("qwen3") for line in lines[1:7]} == {lines[0].index("base model")}
    assert {len(line) for line in lines[:7]} == {len(lines[0])}


def test_malformed_lines_are_reported_by_their_numbers_and_the_rest_goes_on() -> None:
    code, lines, _ = run("-", stdin=MALFORMED)
    assert code == 1
    assert [line.partition(" is malformed")[0] for line in lines if " is malformed: " in line] == [
        f"line {number}" for number in (1, 2, 3, 4, 6, 7, 8)
    ]
    assert lines[-3].split()[0] == "\\ud800"
    assert lines[-2].split()[:2] == ["bonsai-8b", "qwen3-8b"]
    assert lines[-1] == "1 answered, 1 refused, 7 malformed"


def test_another_file_is_read_when_it_is_named(tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_bytes(b'{"messages": []}\n')
    code, lines, _ = run(str(requests))
    assert code == 0
    assert lines[-1] == "1 answered, 0 refused, 0 malformed"


def test_a_file_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    code, _, message = run(str(tmp_path / "gone"))
    assert code == 1
    assert message.startswith("quickstart.py: ")


def test_more_than_one_file_is_answered_with_the_usage() -> None:
    code, _, message = run("a", "b")
    assert code == 1
    assert "usage: quickstart.py [FILE]" in message

"""Runs docs/examples/quickstart.py as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parent.parent / "docs" / "examples" / "quickstart.py"

NESTED = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[int, list[str], str]:
    command = [sys.executable, str(QUICKSTART), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


def asking(tokens: int) -> bytes:
    return b'{"messages": [], "max_tokens": %d}' % tokens


def test_each_request_is_answered_or_refused_for_its_reason() -> None:
    code, lines, errors = run()
    assert (code, errors) == (0, "")
    assert [line.split() for line in lines[1:7]] == [
        ["bonsai-8b", "qwen3-8b", "-", "32768"],
        ["bonsai-8b:code", "qwen3-8b", "code", "32768"],
        ["gpt-4o", "qwen3-70b", "-", "131072"],
        ["gpt-4o-mini", "qwen3-8b", "chat", "32768"],
        ["(nothing)", "qwen3-8b", "-", "32768"],
        ["(nothing)", "qwen3-70b", "-", "131072"],
    ]
    assert [line.split(maxsplit=1) for line in lines[7:10]] == [
        ["bonsai-8b:cod", "ModelNotFoundError: model 'bonsai-8b:cod' not found"],
        ["bonsai-8b", "ContextTooLongError: model 'bonsai-8b' cannot handle context length 40009 (max: 32768)"],
        ["bonsai-70b:law", "ModelNotReadyError: model 'bonsai-70b:law' is not ready (status: loading)"],
    ]
    assert lines[10:] == ["6 answered, 3 refused, 0 malformed"]


def test_the_table_is_aligned_however_long_a_name_is() -> None:
    requests = QUICKSTART.with_name("requests.jsonl").read_bytes()
    long = b'{"model": "a-name-that-is-longer-than-any-other", "messages": []}\n'
    for stdin in (requests, requests + long):
        _, lines, _ = run("-", stdin=stdin)
        assert {line.index("qwen3") for line in lines[1:7]} == {lines[0].index("base model")}
        assert {line.index("Model") for line in lines[9:-1]} == {lines[0].index("base model")}
        assert {len(line) for line in lines[:7]} == {len(lines[0])}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON, Expecting value at column 1"),
        (b'{"messages": []', "not JSON, Expecting ',' delimiter at column 16"),
        (b'{"model": "\xff", "messages": []}', "'utf-8' codec can't decode byte 0xff"),
        (b'{"model": "\xed\xa0\x80", "messages": []}', "'utf-8' codec can't decode byte 0xed"),
        (NESTED, "nested too deeply"),
        (b"[1]", "body must be an object, not [1]"),
        (b"null", "body must be an object, not None"),
        (b'{"model": 1, "messages": []}', "model must be a string or null, not 1"),
        (b'{"model": ["bonsai-8b"], "messages": []}', "model must be a string or null, not ['bonsai-8b']"),
        (b'{"model": "bonsai-8b"}', "messages must be an array, not None"),
        (b'{"messages": {}}', "messages must be an array, not {}"),
        (b'{"messages": "Hello"}', "messages must be an array, not 'Hello'"),
        (b'{"messages": ["Hello"]}', "message must be an object, not 'Hello'"),
        (b'{"messages": [{"content": 3}]}', "content must be a string or an array or null, not 3"),
        (b'{"messages": [{"content": {}}]}', "content must be a string or an array or null, not {}"),
        (b'{"messages": [{"content": ["Hello"]}]}', "part must be an object, not 'Hello'"),
        (b'{"messages": [{"content": [{"type": "text", "text": [1]}]}]}', "text must be a string, not [1]"),
        (b'{"messages": [], "max_tokens": "many"}', "max_tokens must be 0 or more tokens or null, not 'many'"),
        (b'{"messages": [], "max_tokens": true}', "max_tokens must be 0 or more tokens or null, not True"),
        (b'{"messages": [], "max_tokens": 1.5}', "max_tokens must be 0 or more tokens or null, not 1.5"),
        (b'{"messages": [{"content": "Hello"}], "max_completion_tokens": -1}', "max_completion_tokens must be 0 or"),
        (b'{"messages": [], "max_completion_tokens": 1, "max_tokens": -1}', "max_tokens must be 0 or more tokens"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_malformed_line_is_reported_by_its_number_and_the_rest_goes_on(line: bytes, reason: str) -> None:
    code, lines, errors = run("-", stdin=b"\n".join([asking(1), b"", line, b" \r", asking(2)]))
    assert (code, errors) == (1, "")
    assert lines[2].startswith(f"(line 3)   malformed: {reason}")
    assert lines[1] == lines[3] == "(nothing)  qwen3-8b   -       32768"
    assert lines[4:] == ["2 answered, 0 refused, 1 malformed"]


@pytest.mark.parametrize(
    ("body", "base_model"),
    [
        ({"messages": [], "max_tokens": 32768}, "qwen3-8b"),
        ({"messages": [], "max_tokens": 32769}, "qwen3-70b"),
        ({"messages": [], "max_completion_tokens": 32769, "max_tokens": 1}, "qwen3-70b"),
        ({"messages": [], "max_completion_tokens": 1, "max_tokens": 32769}, "qwen3-8b"),
        ({"messages": [], "max_completion_tokens": None, "max_tokens": 32769}, "qwen3-70b"),
        ({"messages": [], "max_completion_tokens": 0, "max_tokens": 32769}, "qwen3-8b"),
        ({"messages": [{"content": "1234"}], "max_tokens": 32767}, "qwen3-8b"),
        ({"messages": [{"content": "12345"}], "max_tokens": 32767}, "qwen3-70b"),
        ({"messages": [{"content": "12"}, {"content": "345"}], "max_tokens": 32767}, "qwen3-70b"),
        ({"messages": [{"content": [{"type": "text", "text": "12345"}]}], "max_tokens": 32767}, "qwen3-70b"),
        ({"messages": [{"content": [{"type": "image_url"}]}], "max_tokens": 32768}, "qwen3-8b"),
        ({"messages": [{"content": None}, {"tool_calls": []}], "max_tokens": 32768}, "qwen3-8b"),
        ({"model": None, "messages": []}, "qwen3-8b"),
    ],
)
def test_a_quarter_of_the_characters_and_the_limit_of_the_answer_are_needed(body: object, base_model: str) -> None:
    code, lines, _ = run("-", stdin=json.dumps(body).encode())
    assert code == 0
    assert lines[1].split()[:2] == ["(nothing)", base_model]


def test_a_name_that_cannot_be_shown_is_escaped_and_keeps_its_row() -> None:
    names = ["\ud800", "a\nb\x1b[31m", "bücher", ""]
    bodies = [json.dumps({"model": name, "messages": []}) for name in names]
    code, lines, errors = run("-", stdin="\n".join(bodies).encode(), PYTHONIOENCODING="ascii")
    assert (code, errors) == (0, "")
    assert [line.partition("Error: ")[2] for line in lines[1:-1]] == [
        r"model '\ud800' not found",
        r"model 'a\nb\x1b[31m' not found",
        r"model 'b\xfccher' not found",
        "model '' not found",
    ]
    assert lines[-1] == "0 answered, 4 refused, 0 malformed"


def test_another_file_is_read_when_it_is_named(tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_bytes(b"\xef\xbb\xbf" + asking(1) + b"\r\n")
    code, lines, _ = run(str(requests))
    assert code == 0
    assert lines[-1] == "1 answered, 0 refused, 0 malformed"


def test_an_empty_file_has_no_malformed_lines() -> None:
    code, lines, _ = run("-")
    assert code == 0
    assert lines == ["asked  base model LoRA  context", "0 answered, 0 refused, 0 malformed"]


def test_a_file_that_cannot_be_opened_is_a_message(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        code, lines, message = run(str(path))
        assert (code, lines) == (1, [])
        assert message.startswith("quickstart.py: ")
        assert message.count("\n") == 1


def test_more_than_one_file_is_answered_with_the_usage() -> None:
    code, lines, message = run("a", "b")
    assert (code, lines) == (1, [])
    assert "usage: quickstart.py [FILE]" in message


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    command = [sys.executable, str(QUICKSTART), "-"]
    # With its usual buffer, so that something is left to write when Python exits.
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        # The script prints when it has read everything, so the pipe is closed by then.
        process.stdout.close()
        process.stdin.write(asking(1))
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0

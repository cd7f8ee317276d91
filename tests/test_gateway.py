"""Runs docs/examples/gateway.py as a user does, and talks to it over sockets."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from bonsai_routing import AdapterRegistry, LoraAdapter, ModelEndpoint

GATEWAY = Path(__file__).parent.parent / "docs" / "examples" / "gateway.py"

# The beginning of a request, and a whole one that may follow.
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
NEXT = b"GET /v1/models/large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

# Seconds after which a test gives up.
PATIENCE = 20

# Seconds that are less than the gateway waits for a silent client, for what must come sooner.
SOON = 5

signals = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this platform has no SIGHUP")

MODELS = """
schema = 1
default = "chat"

[[endpoints]]
id = "small"
base_model = "qwen3-8b"
max_context_length = 1000

[[endpoints]]
id = "large"
base_model = "qwen3-70b"
max_context_length = 1000000

[[endpoints]]
id = "org/name"
base_model = "llama"
max_context_length = 4096

[[endpoints]]
id = "soon"
base_model = "qwen3-1t"
max_context_length = 4096
status = "loading"

[[endpoints]]
id = "broken"
base_model = "qwen3-1t"
max_context_length = 4096
status = "error"

[[adapters]]
name = "code"
base_model = "small"
source = "adapters/code"

[aliases]
chat = "small"
"gpt-4o-mini" = "small:code"
"""


class Running:
    """A gateway in a process of its own."""

    def __init__(self, folder: Path, models: str = MODELS, *options: str) -> None:
        self.config = folder / "models.toml"
        self.log = folder / "log"
        self.write(models)
        command = [sys.executable, "-X", "dev", str(GATEWAY), "--config", str(self.config), "--port", "0", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        listening = re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+) \(PID (\d+)\)", line.strip())
        assert listening is not None, (line, self.logged())
        self.port = int(listening[1])
        assert int(listening[2]) == self.process.pid

    def write(self, models: str) -> None:
        """Replace the file in one step, as an editor does."""
        new = self.config.with_suffix(".new")
        new.write_text(models, encoding="utf-8")
        new.replace(self.config)

    def logged(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def stopped(self) -> int:
        """Return the exit code, and close what is left of the process."""
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            code = self.process.wait(PATIENCE)
            assert stdout.read() == b""
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            code = self.stopped()
            assert code == 0 or not hasattr(signal, "SIGHUP")
            assert "Traceback" not in self.logged()
            assert "Warning" not in self.logged()


@contextmanager
def running(folder: Path, models: str = MODELS, *options: str) -> Iterator[Running]:
    gateway = Running(folder, models, *options)
    try:
        yield gateway
        gateway.stop()
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.stopped()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("gateway")) as started:
        yield started


class Client:
    """A connection to a gateway, which must not be opened a second time."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.connection.connect()
        # Otherwise http.client would connect again without a word.
        self.connection.auto_open = 0

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, Any]:
        """Return the status, the headers, and the body, read as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request(method, path, data, {key.replace("_", "-"): value for key, value in headers.items()})
        response = self.connection.getresponse()
        content = response.read()
        return response.status, response.headers, json.loads(content) if content else None

    def chat(self, body: object) -> tuple[int, Any, Any]:
        return self.ask("POST", "/v1/chat/completions", body)

    def stream(self, body: dict[str, object]) -> http.client.HTTPResponse:
        self.connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}))
        response = self.connection.getresponse()
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        return response


@pytest.fixture
def client(gateway: Running) -> Iterator[Client]:
    with Client(gateway.port) as connected:
        yield connected


def eventually(check: Callable[..., bool], *arguments: object) -> None:
    """Wait until *check* is true."""
    give_up = time.monotonic() + PATIENCE
    while not check(*arguments):
        assert time.monotonic() < give_up, "it has not happened"
        time.sleep(0.005)


def saying(*texts: object, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text} for text in texts], **fields}


def content(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def events(data: bytes) -> list[Any]:
    """Return the events of a stream, the end mark as text."""
    texts = data.decode().split("\n\n")
    assert texts.pop() == ""
    assert all(text.startswith("data: ") for text in texts)
    datas = [text.removeprefix("data: ") for text in texts]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def ids(port: int) -> list[str]:
    with Client(port) as client:
        return [card["id"] for card in client.ask("GET", "/v1/models")[2]["data"]]


def raw(port: int, request: bytes) -> bytes:
    """Send *request* and return all that comes back until the gateway closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as file:
            return file.read()


# Models.


def test_the_list_has_the_ready_models_and_their_aliases(client: Client) -> None:
    status, headers, answer = client.ask("GET", "/v1/models")
    assert (status, headers["Content-Type"], answer["object"]) == (200, "application/json", "list")
    assert [card["id"] for card in answer["data"]] == [
        "small",
        "large",
        "org/name",
        "small:code",
        "chat",
        "gpt-4o-mini",
    ]
    assert answer["data"][3]["root"] == "qwen3-8b"
    assert answer["data"][3]["parent"] == "small"


@pytest.mark.parametrize(
    ("path", "id", "root"),
    [
        ("small", "small", "qwen3-8b"),
        ("small:code", "small:code", "qwen3-8b"),
        ("small%3Acode", "small:code", "qwen3-8b"),
        ("org%2Fname", "org/name", "llama"),
        ("org/name", "org/name", "llama"),
        ("gpt-4o-mini?beta=true", "gpt-4o-mini", "small:code"),
    ],
)
def test_one_model_is_found_however_its_id_is_written(client: Client, path: str, id: str, root: str) -> None:
    status, _, card = client.ask("GET", f"/v1/models/{path}")
    assert (status, card["id"], card["root"]) == (200, id, root)


def test_a_model_that_is_not_there_or_not_ready_has_no_card(client: Client) -> None:
    status, _, answer = client.ask("GET", "/v1/models/smal%3Acode")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert answer["error"]["message"] == "The model `smal:code` does not exist. Did you mean small:code?"
    status, headers, _ = client.ask("GET", "/v1/models/soon")
    assert status == 503
    assert int(headers["Retry-After"]) > 0


def test_head_gets_the_headers_of_get_and_no_body(client: Client) -> None:
    for path, expected in (("/v1/models", 200), ("/v1/models/none", 404), ("/v1/models", 200)):
        status, headers, answer = client.ask("HEAD", path)
        assert (status, answer) == (expected, None)
        assert int(headers["Content-Length"]) > 0


# Chat.


@pytest.mark.parametrize(
    ("model", "who"),
    [
        ("small", "qwen3-8b"),
        ("large", "qwen3-70b"),
        ("org/name", "llama"),
        ("small:code", "qwen3-8b with code"),
        ("gpt-4o-mini", "qwen3-8b with code"),
        ("chat", "qwen3-8b"),
    ],
)
def test_the_requested_model_answers_under_the_name_that_was_requested(client: Client, model: str, who: str) -> None:
    status, headers, answer = client.chat(saying("Be brief.", "Which tree is this?", model=model))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert answer["model"] == model
    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": f"{who}: Which tree is this?"}
    assert choice["finish_reason"] == "stop"
    tokens = len(who.split()) + 4
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}


@pytest.mark.parametrize(("tokens", "id"), [(998, "small"), (999, "large")])
@pytest.mark.parametrize("model", [{}, {"model": None}])
def test_without_a_model_the_default_answers_if_the_request_fits(
    client: Client, model: dict[str, object], tokens: int, id: str
) -> None:
    status, _, answer = client.chat(saying("12345", max_tokens=tokens, **model))
    assert (status, answer["model"]) == (200, id)


@pytest.mark.parametrize(
    ("content_given", "text"),
    [
        (
            [{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "c"}],
            "a bc",
        ),
        ([], ""),
        (None, ""),
        ("", ""),
        ("  bücher\n\ud83c\udf33 \ud800", "  bücher\n\U0001f333 \ud800"),
    ],
)
def test_the_content_may_be_text_or_parts_or_nothing(client: Client, content_given: object, text: str) -> None:
    status, _, answer = client.chat(saying(content_given, model="small"))
    assert (status, content(answer)) == (200, f"qwen3-8b: {text}")


def test_a_message_without_content_and_no_messages_are_answered(client: Client) -> None:
    for messages in ([], [{"role": "assistant", "tool_calls": []}]):
        status, _, answer = client.chat({"model": "small", "messages": messages})
        assert (status, content(answer)) == (200, "qwen3-8b: ")


@pytest.mark.parametrize(
    ("limits", "text", "reason"),
    [
        ({"max_tokens": 2}, "qwen3-8b: one ", "length"),
        ({"max_tokens": 0}, "", "length"),
        ({"max_tokens": 3}, "qwen3-8b: one two", "stop"),
        ({"max_tokens": 3, "max_completion_tokens": 1}, "qwen3-8b: ", "length"),
        ({"max_tokens": 1, "max_completion_tokens": None}, "qwen3-8b: ", "length"),
        ({"max_tokens": -1}, "qwen3-8b: one two", "stop"),
        ({"max_tokens": None}, "qwen3-8b: one two", "stop"),
        ({"max_tokens": 1, "max_completion_tokens": -1}, "qwen3-8b: one two", "stop"),
    ],
)
def test_the_answer_ends_at_the_limit(client: Client, limits: dict[str, object], text: str, reason: str) -> None:
    status, _, answer = client.chat(saying("one two", model="small", **limits))
    assert (status, content(answer), answer["choices"][0]["finish_reason"]) == (200, text, reason)


def test_a_stream_has_the_role_then_the_tokens_then_the_reason_and_the_end(client: Client) -> None:
    response = client.stream(saying("one two", model="gpt-4o-mini"))
    *sent, end = events(response.read())
    assert end == "[DONE]"
    assert {(each["object"], each["model"]) for each in sent} == {("chat.completion.chunk", "gpt-4o-mini")}
    assert len({(each["id"], each["created"]) for each in sent}) == 1
    choices = [choice for each in sent for choice in each["choices"]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "qwen3-8b "},
        {"content": "with "},
        {"content": "code: "},
        {"content": "one "},
        {"content": "two"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["stop"]
    # The connection goes on.
    assert client.chat(saying("three"))[0] == 200


def test_a_stream_ends_with_the_usage_if_that_is_wanted(client: Client) -> None:
    for wanted in (True, False, None):
        options = {} if wanted is None else {"include_usage": wanted}
        response = client.stream(saying("one two", model="small", max_tokens=2, stream_options=options))
        *sent, last, _ = events(response.read())
        if wanted:
            assert last["choices"] == []
            assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
            last = sent.pop()
        assert last["choices"][0]["finish_reason"] == "length"
        assert not any("usage" in each for each in (*sent, last))


def test_an_old_client_gets_its_stream_without_chunks(gateway: Running) -> None:
    body = json.dumps(saying("one", model="small", stream=True)).encode()
    request = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    head, _, data = raw(gateway.port, request).partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    assert b"chunked" not in head
    assert events(data)[-1] == "[DONE]"


# What the router refuses.


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "code", "headers"),
    [
        (saying("Hi", model="none"), 404, "model_not_found", {}),
        (saying("Hi", model=""), 404, "model_not_found", {}),
        (saying("Hi", model="\ud800"), 404, "model_not_found", {}),
        (saying("Hi", model="small", max_tokens=1000), 400, "context_length_exceeded", {}),
        (saying("x" * 4001, model="gpt-4o-mini"), 400, "context_length_exceeded", {}),
        (saying("Hi", max_tokens=2**31 - 1), 400, "context_length_exceeded", {}),
        (saying("Hi", model="soon"), 503, "model_not_ready", {"Retry-After": "5"}),
        (saying("Hi", model="broken"), 503, "model_not_ready", {"x-should-retry": "false"}),
    ],
)
def test_what_is_not_routed_is_answered_as_openai_does_and_the_connection_goes_on(
    client: Client, body: dict[str, object], status: int, code: str, headers: dict[str, str], streamed: bool
) -> None:
    actual, sent, answer = client.chat({**body, "stream": streamed})
    assert (actual, answer["error"]["code"]) == (status, code)
    assert {name: sent[name] for name in headers} == headers
    assert client.chat(saying("Hi"))[0] == 200


def test_too_long_a_request_is_told_the_numbers(client: Client) -> None:
    _, _, answer = client.chat(saying("12345", model="small", max_tokens=1000))
    assert answer["error"]["message"].startswith("This model's maximum context length is 1000 tokens. ")
    assert "you requested 1002 tokens (2 in the messages, 1000 in the completion)." in answer["error"]["message"]


# What the gateway refuses.


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body must be JSON in UTF-8: Expecting value"),
        (b"not json", "the body must be JSON in UTF-8: Expecting value"),
        (b'{"messages": []', "the body must be JSON in UTF-8: Expecting ',' delimiter"),
        (b'{"model": "\xff", "messages": []}', "the body must be JSON in UTF-8: 'utf-8' codec can't decode byte 0xff"),
        (
            b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "the body must be JSON in UTF-8: maximum recursion",
        ),
        (b'{"messages": [' + b"[" * 400 + b"]" * 400 + b"]}", "messages[0] must be an object, not [[["),
        (b'{"messages": [], "max_tokens": ' + b"9" * 5000 + b"}", "the body must be JSON in UTF-8: Exceeds the limit"),
        (b"[1]", "body must be an object, not [1]"),
        (b"null", "body is missing"),
        (b'{"model": 1, "messages": []}', "model must be a string, not 1"),
        (b'{"model": ["small"], "messages": []}', "model must be a string, not ['small']"),
        (b'{"model": "small"}', "messages is missing"),
        (b'{"messages": {}}', "messages must be an array, not {}"),
        (b'{"messages": "Hello"}', "messages must be an array, not 'Hello'"),
        (b'{"messages": ["Hello"]}', "messages[0] must be an object, not 'Hello'"),
        (b'{"messages": [{"content": 0}]}', "messages[0].content must be a string or an array, not 0"),
        (b'{"messages": [{"content": {}}]}', "messages[0].content must be a string or an array, not {}"),
        (b'{"messages": [{"content": ["Hello"]}]}', "messages[0].content[0] must be an object, not 'Hello'"),
        (b'{"messages": [{"content": [{"type": "text"}]}]}', "messages[0].content[0].text is missing"),
        (
            b'{"messages": [{"content": [{"type": "text", "text": [1]}]}]}',
            "messages[0].content[0].text must be a string, not [1]",
        ),
        (b'{"messages": [], "max_tokens": "many"}', "max_tokens must be from -1 to 2147483647, not 'many'"),
        (b'{"messages": [], "max_tokens": true}', "max_tokens must be from -1 to 2147483647, not True"),
        (b'{"messages": [], "max_tokens": 1.0}', "max_tokens must be from -1 to 2147483647, not 1.0"),
        (b'{"messages": [], "max_tokens": NaN}', "max_tokens must be from -1 to 2147483647, not nan"),
        (b'{"messages": [], "max_tokens": -2}', "max_tokens must be from -1 to 2147483647, not -2"),
        (b'{"messages": [], "max_tokens": 2147483648}', "max_tokens must be from -1 to 2147483647, not 2147483648"),
        (
            b'{"messages": [], "max_completion_tokens": -2}',
            "max_completion_tokens must be from -1 to 2147483647, not -2",
        ),
        (b'{"messages": [], "stream": 1}', "stream must be true or false, not 1"),
        (b'{"messages": [], "stream": "true"}', "stream must be true or false, not 'true'"),
        (b'{"messages": [], "stream_options": true}', "stream_options must be an object, not True"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_malformed_body_is_told_why_and_the_connection_goes_on(client: Client, body: bytes, message: str) -> None:
    status, _, answer = client.chat(body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"].startswith(message)
    assert client.chat(saying("Hi"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/", 404, None),
        ("POST", "/v1/completions", 404, None),
        ("GET", "/v1/modelsx", 404, None),
        ("GET", "card", 404, None),
        ("GET", "/v2/models", 404, None),
        ("POST", "/v1/chat", 404, None),
        ("POST", "/health", 405, "GET, HEAD"),
        ("GET", "//[", 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/chat/completions", 405, "POST"),
        ("OPTIONS", "/v1/chat/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("PUT", "/v1/models/small", 405, "GET, HEAD"),
        ("PATCH", "/v1/models/small", 405, "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_an_unknown_path_or_method_is_refused_and_its_body_is_not_the_next_request(
    client: Client, method: str, path: str, status: int, allowed: str | None, body: bytes
) -> None:
    actual, headers, answer = client.ask(method, path, body)
    assert (actual, headers["Allow"]) == (status, allowed)
    assert answer["error"]["type"] == "invalid_request_error"
    actual, _, answer = client.ask("GET", "/v1/models/small")
    assert (actual, answer["id"]) == (200, "small")


@pytest.mark.parametrize(
    ("request_sent", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2.0\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n{}" % (b"9" * 5000), 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 16777217\r\n\r\n{}", 413),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}", 413),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 16777217\r\n\r\n", 413),
        (b"BREW /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 501),
        (b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 70_000), 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 70_000), 431),
        (b"GET / HTTP/3\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value[-60:]) if isinstance(value, bytes) else "",
)
def test_a_request_whose_end_is_unknown_is_the_last_of_its_connection(
    gateway: Running, request_sent: bytes, status: int
) -> None:
    # Were the connection to go on, a second answer would follow.
    answered = raw(gateway.port, request_sent + b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_long_prompt_and_a_photo_fit_into_a_body_and_more_is_refused_while_it_comes(client: Client) -> None:
    photo = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{'A' * 11_000_000}"}}
    prompt = {"type": "text", "text": "word " * 131_072}
    assert client.chat(saying([prompt, photo], model="large"))[0] == 200
    status, _, answer = client.chat(b" " * (2**24 + 1))
    assert (status, answer["error"]["message"]) == (413, "the body must not have more than 16777216 bytes")


def test_a_client_that_asks_whether_it_may_send_the_body_is_told(gateway: Running) -> None:
    body = json.dumps(saying("one", model="small")).encode()
    head = CHAT + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    answered = raw(gateway.port, head % len(body) + body)
    assert answered.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_a_body_that_ends_early_is_refused(gateway: Running) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        connection.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"messages": ')
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            assert file.read().startswith(b"HTTP/1.1 400 ")


def test_requests_that_are_sent_at_once_are_answered_in_order(gateway: Running) -> None:
    requests = [b"GET /v1/models/%b HTTP/1.1\r\nHost: x\r\n\r\n" % name for name in (b"small", b"none", b"large")]
    last = b"GET /v1/models/chat HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answered = raw(gateway.port, b"".join(requests) + last)
    found = [answered.index(text) for text in (b'"id": "small"', b"`none`", b'"id": "large"', b'"id": "chat"')]
    assert found == sorted(found)


# Requests as they come over the wire.


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[place : place + size] for place in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("coding", [b"chunked", b"Chunked ", b"\tCHUNKED"])
def test_a_body_in_chunks_is_read_to_its_end(gateway: Running, size: int, coding: bytes) -> None:
    body = json.dumps(saying("one", model="small")).encode()
    answered = raw(gateway.port, CHAT + b"Transfer-Encoding:%b\r\n\r\n%b" % (coding, chunked(body, size)) + NEXT)
    assert answered.count(b"HTTP/1.1 200 OK") == 2
    assert answered.index(b"qwen3-8b: one") < answered.index(b'"id": "large"')


def test_a_chunk_may_have_an_extension(gateway: Running) -> None:
    body = b'4;a="b"\r\n{"me\r\n0c ; x\r\nssages": []}\r\n000;z\r\n\r\n'
    assert raw(gateway.port, CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + body + NEXT).count(b" 200 OK") == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: identity\r\n\r\n{}", 400),
        (b"Transfer-Encoding:\r\n\r\n{}", 400),
        (b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n{}", 413),
        (b"Transfer-Encoding: chunked\r\n\r\n800000\r\n%b\r\n800001\r\n" % (b" " * 0x800000), 413),
        (b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n{}", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{} \r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n\r\n", 400),
        (b"Content-Length : 5\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"a line without a colon\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"N\xc3\xa4me: x\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"X: a\rContent-Length: 2\r\n\r\n{}", 400),
        (b"X: a\r\n Content-Length: 9\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b": x\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"From x\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"Host: x\r\nContent-Length: 2\r\n\r\n{}", 400),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else "",
)
def test_nothing_in_a_body_is_taken_for_a_request(gateway: Running, sent: bytes, status: int) -> None:
    answered = raw(gateway.port, CHAT + sent + NEXT)
    assert answered.startswith(b"HTTP/1.1 %d " % status)
    assert answered.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answered


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\n",
        b"GET  /v1/models HTTP/1.1\r\nHost: x\r\n",
        b"GET\t/v1/models HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1/models\r HTTP/1.1\r\nHost: x\r\n",
        b"GET /v1/models HTTP/1.1 \r\nHost: x\r\n",
        b"GET /v1/models HTTP/1.0\r\nHost: x\r\nHost: x\r\n",
        b"POST /v1/chat/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_head_that_may_be_read_in_two_ways_is_refused(gateway: Running, head: bytes) -> None:
    answered = raw(gateway.port, head + b"\r\n" + NEXT)
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert answered.count(b"HTTP/1.1 ") == 1


def test_a_head_that_ends_early_is_refused(gateway: Running) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            assert file.read().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("line", [b"\r\n", b"\n", b"\r\n\r\n"])
def test_an_empty_line_before_a_request_is_skipped(gateway: Running, line: bytes) -> None:
    body = line + CHAT + b'Content-Length: 15\r\n\r\n{"messages":[]}'
    assert raw(gateway.port, body + body + line + NEXT).count(b"HTTP/1.1 200 OK") == 3


def test_an_old_client_needs_no_host(gateway: Running) -> None:
    assert raw(gateway.port, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/v1/models/", "list"),
        ("GET", "//v1//models//", "list"),
        ("GET", "http://example.com/v1/models?x=http://y/z", "list"),
        ("GET", "HTTPS://example.com:8000/v1/models/org/name", "model"),
        ("GET", "//v1//models/org/name", "model"),
        ("POST", "/v1/chat/completions/", "chat.completion"),
        ("POST", "/v1//chat/completions", "chat.completion"),
        ("POST", "http://example.com/v1/chat/completions", "chat.completion"),
    ],
)
def test_a_path_may_have_slashes_too_many_or_be_a_whole_url(client: Client, method: str, path: str, found: str) -> None:
    status, _, answer = client.ask(method, path, None if method == "GET" else saying("Hi"))
    assert (status, answer["object"]) == (200, found)


def test_a_slash_behind_an_id_gets_a_plain_answer(client: Client) -> None:
    status, _, answer = client.ask("GET", "/v1/models/small/")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "small"}, "messages"),
        ({"messages": [{}, {"content": 1}]}, "messages[1].content"),
        ({"messages": [{"content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [], "max_tokens": "1"}, "max_tokens"),
        ({"messages": [], "model": 1}, "model"),
    ],
)
def test_the_field_that_is_wrong_is_named(client: Client, body: object, param: str) -> None:
    status, _, answer = client.chat(body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert answer["error"]["message"].startswith(f"{param} ")


def test_the_health_is_told(client: Client) -> None:
    for path in ("/health", "/health/", "/health?verbose=1"):
        assert client.ask("GET", path)[::2] == (200, {"status": "ok"})
    assert client.ask("HEAD", "/health")[::2] == (200, None)


def test_a_stream_is_neither_cached_nor_kept_back(client: Client) -> None:
    response = client.stream(saying("one", model="small"))
    response.read()
    assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-cache", "no")


def test_pages_of_the_origin_that_is_given_may_ask(tmp_path: Path) -> None:
    origin = "http://localhost:5173"
    with running(tmp_path, MODELS, "--cors", origin) as gateway, Client(gateway.port) as client:
        status, headers, _ = client.ask(
            "OPTIONS",
            "/v1/chat/completions",
            Origin=origin,
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="authorization,content-type",
        )
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert headers["Access-Control-Allow-Methods"] == "*"
        assert headers["Access-Control-Allow-Headers"] == "authorization,content-type"
        answers = [
            client.ask("GET", "/v1/models", Origin=origin)[1],
            client.chat(saying("Hi", model="none"))[1],
            client.chat(b"nonsense")[1],
        ]
        response = client.stream(saying("Hi"))
        response.read()
        for headers in (*answers, response.headers):
            assert headers["Access-Control-Allow-Origin"] == origin
            assert "x-should-retry" in headers["Access-Control-Expose-Headers"]


def test_without_an_origin_no_page_may_ask(client: Client) -> None:
    assert client.ask("OPTIONS", "/v1/models")[0] == 405
    assert client.ask("GET", "/v1/models")[1]["Access-Control-Allow-Origin"] is None


def test_the_limit_of_a_body_can_be_set(tmp_path: Path) -> None:
    with running(tmp_path, MODELS, "--body-limit", "100") as gateway:
        for size, status in ((100, 200), (101, 413)):
            body = b" " * (size - 16) + b'{"messages": []}'
            with Client(gateway.port) as client:
                assert client.chat(body)[0] == status
            chunks = CHAT + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, 30)
            assert raw(gateway.port, chunks).startswith(b"HTTP/1.1 %d " % status)


# Clients that leave, and models that are swapped, seen from inside.


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Any]:
    """A gateway in this process, whose registry the test can see."""
    spec = importlib.util.spec_from_file_location("gateway", GATEWAY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = tmp_path / "models.toml"
    config.write_text(MODELS, encoding="utf-8")
    gateway = module.Gateway(config, "127.0.0.1", 0, None, 1 << 20, PATIENCE)
    gateway.module = module
    wishes: SimpleQueue[int] = SimpleQueue()
    threads = [
        threading.Thread(target=gateway.serve_forever, args=(0.01,)),
        threading.Thread(target=gateway.follow, args=(wishes,)),
    ]
    for thread in threads:
        thread.start()
    gateway.reload = lambda: wishes.put(0)
    yield gateway
    wishes.put(signal.SIGTERM)
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# More than the buffers of two sockets hold, so it is under way until the client has read it.
LONG = saying("word " * 40_000, model="large")


def test_a_client_that_leaves_in_the_middle_of_a_stream_leaves_no_lease(
    inside: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        with Client(inside.server_port) as client:
            response = client.stream(LONG)
            assert response.readline().startswith(b"data: ")
            assert inside.models.in_flight("large") == 1
            response.close()
        eventually(lambda: inside.models.in_flight("large") == 0)
    assert ids(inside.server_port)
    assert capfd.readouterr().err == ""


def test_a_swapped_model_goes_on_until_its_last_stream_ends(inside: Any) -> None:
    with Client(inside.server_port) as client, Client(inside.server_port) as other:
        _, _, before = other.chat(saying("Hi", model="large"))
        response = client.stream(LONG)
        old = inside.models.swap(ModelEndpoint("large", "qwen4-70b", max_context_length=1_000_000))
        _, _, after = other.chat(saying("Hi", model="large"))
        assert content(after) == "qwen4-70b: Hi"
        assert after["system_fingerprint"] != before["system_fingerprint"]
        assert not old.done()
        *sent, end = events(response.read())
        assert end == "[DONE]"
        assert sent[1]["choices"][0]["delta"]["content"] == "qwen3-70b: "
        assert {each["system_fingerprint"] for each in sent} == {before["system_fingerprint"]}
        assert old.result(PATIENCE).base_model == "qwen3-70b"


def failing_after(tokens: int, error: Exception) -> Callable[..., Iterator[tuple[str, str | None]]]:
    def engine(*_: object) -> Iterator[tuple[str, str | None]]:
        yield from [("token ", None)] * tokens
        raise error

    return engine


# An engine may use a socket of its own, whose errors are not those of the client's connection.
FAILURES = [RuntimeError("out of memory: /secret"), ConnectionResetError("/secret"), TimeoutError("/secret")]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
@pytest.mark.parametrize(("tokens", "streamed"), [(0, False), (2, False), (0, True)])
def test_an_engine_that_fails_is_a_500_that_nobody_repeats(
    inside: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, tokens: int, streamed: bool
) -> None:
    with Client(inside.server_port) as client:
        with monkeypatch.context() as patch:
            patch.setattr(inside.module, "echo", failing_after(tokens, error))
            status, headers, answer = client.chat(saying("Hi", model="small", stream=streamed))
        assert (status, headers["Content-Type"], headers["x-should-retry"]) == (500, "application/json", "false")
        assert answer["error"]["type"] == "server_error"
        assert "secret" not in str(answer)
        assert inside.models.in_flight("small") == 0
        # The connection goes on.
        assert client.chat(saying("Hi", model="small"))[0] == 200


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_an_engine_that_fails_in_a_stream_is_an_event_and_the_stream_ends(
    inside: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with Client(inside.server_port) as client:
        with monkeypatch.context() as patch:
            patch.setattr(inside.module, "echo", failing_after(2, error))
            data = client.stream(saying("Hi", model="small")).read()
        *sent, failure, end = events(data)
        assert [each["choices"][0]["delta"] for each in sent[1:]] == [{"content": "token "}] * 2
        assert (failure["error"]["type"], end) == ("server_error", "[DONE]")
        assert b"secret" not in data
        assert b"HTTP/1.1" not in data
        assert client.chat(saying("Hi", model="small"))[0] == 200
    eventually(lambda: inside.models.in_flight("small") == 0)


def test_a_failure_of_the_gateway_itself_is_a_500(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with Client(inside.server_port) as client:
        monkeypatch.setattr(inside.module, "models_response", fail)
        assert client.ask("GET", "/v1/models")[0] == 500
        monkeypatch.setattr(inside.module, "error_response", fail)
        assert client.chat(saying("Hi", model="none"))[0] == 500
        assert client.chat(saying("Hi", model="small"))[0] == 200


def test_an_engine_is_told_to_stop_when_its_client_leaves(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    leased: list[int] = []

    def engine(*_: object) -> Iterator[tuple[str, str | None]]:
        try:
            while True:
                yield "token ", None
        finally:
            leased.append(inside.models.in_flight("large"))

    monkeypatch.setattr(inside.module, "echo", engine)
    with Client(inside.server_port) as client:
        client.stream(saying("Hi", model="large")).close()
    # The lease is still there when the engine ends.
    eventually(lambda: leased == [1])
    eventually(lambda: inside.models.in_flight("large") == 0)


class Crowd:
    """Clients that use, all at once, what is there throughout, and note what fails."""

    # What to ask for, and who answers.
    NAMES = (
        ("small", "qwen3-8b"),
        ("small:code", "qwen3-8b with code"),
        ("gpt-4o-mini", "qwen3-8b with code"),
        ("chat", "qwen3-8b"),
        ("large", "qwen3-70b"),
    )

    def __init__(self, port: int) -> None:
        self.failures: list[object] = []
        # The generations of the adapter that have answered.
        self.generations: set[str] = set()
        self.threads = [threading.Thread(target=self.run, args=(port, place)) for place in range(8)]
        for thread in self.threads:
            thread.start()

    def run(self, port: int, place: int) -> None:
        try:
            with Client(port) as client:
                for turn in range(50):
                    self.use(client, *self.NAMES[(turn + place) % len(self.NAMES)], streamed=turn % 2 == 0)
        except BaseException as failure:
            self.failures.append((place, failure))

    def use(self, client: Client, model: str, who: str, streamed: bool) -> None:
        if streamed:
            *sent, last, end = events(client.stream(saying("Hi", model=model)).read())
            assert (last["choices"][0]["finish_reason"], end) == ("stop", "[DONE]")
            text = "".join(each["choices"][0]["delta"]["content"] for each in sent)
        else:
            status, _, last = client.chat(saying("Hi", model=model))
            assert status == 200
            text = content(last)
        assert (last["model"], text) == (model, f"{who}: Hi")
        if model == "gpt-4o-mini":
            self.generations.add(last["system_fingerprint"])
        assert client.ask("GET", f"/v1/models/{model}")[0] == 200
        # This one comes and goes.
        assert client.chat(saying("Hi", model="new"))[0] in (200, 404)

    def is_there(self) -> bool:
        return any(thread.is_alive() for thread in self.threads)

    def leave(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)
        assert self.failures == []
        assert len(self.generations) > 1


def test_no_request_fails_while_adapters_are_swapped_and_the_file_is_read_again(inside: Any) -> None:
    adapters = AdapterRegistry(inside.models)
    crowd = Crowd(inside.server_port)
    swaps: list[Future[ModelEndpoint | None]] = []
    while crowd.is_there() or len(swaps) < 5:
        swaps.append(adapters.swap(LoraAdapter("code", "small", f"adapters/code-v{len(swaps)}")))
        inside.reload()
        # Every other time the reload comes before the next swap, and undoes this one.
        if len(swaps) % 2:
            eventually(lambda: [each.source for each in adapters] == ["adapters/code"])
    crowd.leave()
    assert all(swap.result(PATIENCE) is not None for swap in swaps)
    assert inside.models.draining() == []


# Signals.

NEW = '\n[[endpoints]]\nid = "new"\nbase_model = "qwen4"\nmax_context_length = 4096\n'


@signals
def test_a_reload_adds_what_is_new_and_removes_what_is_gone(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, Client(gateway.port) as client:
        _, _, before = client.chat(saying("Hi", model="small"))
        gateway.write(MODELS.replace('id = "org/name"', 'id = "org/other"') + NEW)
        gateway.reload()
        eventually(lambda: "new" in ids(gateway.port))
        assert "org/name" not in ids(gateway.port)
        for model, status in (("new", 200), ("org/other", 200), ("org/name", 404), ("small:code", 200)):
            assert client.chat(saying("Hi", model=model))[0] == status
        _, _, after = client.chat(saying("Hi", model="small"))
        # What has not changed is the same as before.
        assert after["system_fingerprint"] == before["system_fingerprint"]
        assert "reloaded: RegistryChange(added=('org/other', 'new'), removed=('org/name',), changed=())" in (
            gateway.logged()
        )


@signals
def test_a_broken_file_is_logged_with_all_its_problems_and_changes_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, Client(gateway.port) as client:
        broken = MODELS.replace('default = "chat"', 'default = "nobody"').replace('base_model = "llama"', "")
        problems = ("default is 'nobody', which is neither", "endpoints[2].base_model is missing", "Invalid ")
        for models, expected in ((broken, problems[:2]), ("schema = [", problems[2:])):
            gateway.write(models + NEW)
            gateway.reload()
            eventually(lambda texts: all(text in gateway.logged() for text in texts), expected)
            assert client.chat(saying("Hi", model="org/name"))[0] == 200
            assert client.chat(saying("Hi", model="new"))[0] == 404
        gateway.config.unlink()
        gateway.reload()
        eventually(lambda: "the file cannot be read" in gateway.logged())
        assert gateway.logged().count("not reloaded") == 3
        gateway.write(MODELS + NEW)
        gateway.reload()
        eventually(lambda: "new" in ids(gateway.port))


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        # It was accepted by the system, and thrown away when the gateway closed.
        return False
    return False


@signals
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_lets_the_requests_in_flight_finish(tmp_path: Path, name: str) -> None:
    body = json.dumps(saying("Hi", model="small")).encode()
    with (
        running(tmp_path) as gateway,
        Client(gateway.port) as streaming,
        Client(gateway.port) as idle,
        closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)) as sending,
    ):
        assert idle.chat(saying("Hi"))[0] == 200
        response = streaming.stream(LONG)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        sending.sendall(head % len(body) + body[:9])
        # This comes when the gateway has begun with the request.
        assert sending.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n")
        gateway.process.send_signal(getattr(signal, name))
        # A connection that waits for a request is closed at once, ...
        idle.connection.sock.settimeout(SOON)
        assert idle.connection.sock.recv(1) == b""
        eventually(lambda: refused(gateway.port))
        # ... one with half a request waits for the other half, ...
        sending.sendall(body[9:])
        with sending.makefile("rb") as file:
            answered = file.read()
        assert answered.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in answered
        # ... and one with half an answer gets the other half.
        assert gateway.process.poll() is None
        *sent, end = events(response.read())
        assert (end, len(sent)) == ("[DONE]", 40_000 + 3)
        assert gateway.stopped() == 0
        assert gateway.logged() == "gateway: stopping within 30 seconds\n"


@signals
def test_no_request_fails_while_models_are_swapped_and_the_file_is_read_again(tmp_path: Path) -> None:
    def version(number: int) -> str:
        # Each version has another adapter of that name, and another base.
        models = MODELS.replace('source = "adapters/code"', f'source = "adapters/code-v{number}"')
        models = models.replace("max_context_length = 1000000", f"max_context_length = {1000000 + number}")
        return (
            models
            + f'\n[[endpoints]]\nid = "v{number}"\nbase_model = "v"\nmax_context_length = 4096\n'
            + (NEW if number % 2 else "")
        )

    with running(tmp_path, version(0)) as gateway:
        crowd = Crowd(gateway.port)
        number = 0
        while crowd.is_there() or number < 5:
            number += 1
            gateway.write(version(number))
            gateway.reload()
            eventually(lambda id: id in ids(gateway.port), f"v{number}")
        crowd.leave()
        assert gateway.logged().count("changed=('large', 'small:code')") == number


@signals
def test_a_thousand_clients_that_connect_at_once_are_answered(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000 and hard != resource.RLIM_INFINITY:
        pytest.skip("a process may not have enough files open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4000), hard))
    try:
        with running(tmp_path) as gateway, ExitStack() as stack:
            # While it is stopped, it takes no connection, so all of them must find a place to wait.
            gateway.process.send_signal(signal.SIGSTOP)
            crowd = [
                stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE))
                for _ in range(1000)
            ]
            for connection in crowd:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            gateway.process.send_signal(signal.SIGCONT)
            for connection in crowd:
                assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@signals
def test_without_free_file_descriptors_it_waits_and_does_not_spin(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    proc = Path("/proc")
    if not (proc / "self" / "stat").exists():
        pytest.skip("this platform has no /proc")
    with running(tmp_path) as gateway:
        limit = len([*(proc / str(gateway.process.pid) / "fd").iterdir()])
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (limit + 1, limit + 1))

        def seconds() -> float:
            """Return the processor time that the gateway has taken."""
            fields = (proc / str(gateway.process.pid) / "stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        with Client(gateway.port) as first:
            assert first.ask("GET", "/health")[0] == 200
            with closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)) as second:
                second.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                before, start = seconds(), time.monotonic()
                second.settimeout(1)
                with pytest.raises(TimeoutError):
                    second.recv(1)
                assert seconds() - before < (time.monotonic() - start) / 2
                first.connection.close()
                second.settimeout(PATIENCE)
                assert second.recv(100).startswith(b"HTTP/1.1 200 OK")


def dripping(connection: socket.socket) -> None:
    """Begin a request that does not end."""
    connection.sendall(CHAT + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")


def reading_slowly(connection: socket.socket) -> None:
    """Begin a stream that is not read to its end."""
    body = json.dumps({**LONG, "stream": True}).encode()
    connection.sendall(CHAT + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


@signals
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("begin", [dripping, reading_slowly])
@pytest.mark.parametrize("again", [False, True])
def test_a_stop_ends_after_its_grace_period_or_at_the_second_signal(
    tmp_path: Path, begin: Callable[[socket.socket], None], name: str, again: bool
) -> None:
    number = getattr(signal, name)
    with (
        running(tmp_path, MODELS, "--grace", "300" if again else "0.3") as gateway,
        closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE)) as connection,
    ):
        begin(connection)
        start = time.monotonic()
        gateway.process.send_signal(number)
        eventually(lambda: "stopping within" in gateway.logged())
        if again:
            gateway.process.send_signal(number)
        assert gateway.stopped() == (-number if again else 1)
        # Sooner than it gives up a silent client.
        assert time.monotonic() - start < SOON
        assert "Traceback" not in gateway.logged()


@signals
def test_sixty_reloads_are_few_and_do_not_delay_a_stop(tmp_path: Path) -> None:
    # A file that takes a while to read.
    many = "".join(f'\n[[endpoints]]\nid = "e{n}"\nbase_model = "x"\nmax_context_length = 9\n' for n in range(2000))
    with running(tmp_path, MODELS + many) as gateway:
        gateway.reload()
        eventually(lambda: "reloaded" in gateway.logged())
        start = time.monotonic()
        gateway.reload()
        eventually(lambda: gateway.logged().count("reloaded") == 2)
        one = time.monotonic() - start
        for _ in range(60):
            gateway.reload()
            time.sleep(one / 100)
        gateway.process.terminate()
        start = time.monotonic()
        assert gateway.stopped() == 0
        assert time.monotonic() - start < 2 * one + SOON
        assert gateway.logged().count("reloaded") <= 5


@signals
def test_a_fifo_in_place_of_the_file_does_not_block_it(tmp_path: Path) -> None:
    with running(tmp_path) as gateway, Client(gateway.port) as client:
        gateway.config.unlink()
        os.mkfifo(gateway.config)
        gateway.reload()
        eventually(lambda: "it is not a regular file" in gateway.logged())
        assert client.chat(saying("Hi"))[0] == 200


# The start.


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path, gateway: Running) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('schema = 2\ndefualt = "x"\n', encoding="utf-8")
    for arguments, reasons in (
        (["--config", str(broken)], ["schema must be 1, not 2", "defualt is not a known key; did you mean 'default'?"]),
        (["--config", str(tmp_path / "gone.toml")], ["the file cannot be read"]),
        (["--port", str(gateway.port)], [f"cannot listen on 127.0.0.1:{gateway.port}: ", "in use"]),
        (["--port", "70000"], ["0-65535"]),
    ):
        done = subprocess.run([sys.executable, str(GATEWAY), *arguments], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (2, b"")
        errors = done.stderr.decode()
        assert "Traceback" not in errors
        assert all(reason in errors for reason in reasons), errors


def test_the_example_configuration_is_what_it_serves_unless_told_otherwise() -> None:
    process = subprocess.Popen([sys.executable, str(GATEWAY), "--port", "0"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        port = int(stdout.readline().decode().rpartition(":")[2].partition(" ")[0])
        assert ids(port)[:2] == ["bonsai-8b", "bonsai-70b"]
        process.terminate()
        process.wait(PATIENCE)

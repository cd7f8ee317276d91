"""Runs docs/examples/gateway.py as a user does, and talks to it over sockets."""

import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from bonsai_routing import AdapterRegistry, LoraAdapter, ModelEndpoint

GATEWAY = Path(__file__).parent.parent / "docs" / "examples" / "gateway.py"

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

    def __init__(self, folder: Path, models: str = MODELS) -> None:
        self.config = folder / "models.toml"
        self.log = folder / "log"
        self.write(models)
        command = [sys.executable, "-X", "dev", str(GATEWAY), "--config", str(self.config), "--port", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on http://127.0.0.1:"), (line, self.logged())
        self.port = int(line.rpartition(":")[2])

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
def running(folder: Path, models: str = MODELS) -> Iterator[Running]:
    gateway = Running(folder, models)
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
    assert (
        "This model's maximum context length is 1000 tokens. However, you requested 1002 tokens."
        in (answer["error"]["message"])
    )


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
        (b'{"messages": [' + b"[" * 400 + b"]" * 400 + b"]}", "a message must be an object, not [[["),
        (b'{"messages": [], "max_tokens": ' + b"9" * 5000 + b"}", "the body must be JSON in UTF-8: Exceeds the limit"),
        (b"[1]", "the body must be an object, not [1]"),
        (b"null", "the body must be an object, not None"),
        (b'{"model": 1, "messages": []}', "model must be a string, not 1"),
        (b'{"model": ["small"], "messages": []}', "model must be a string, not ['small']"),
        (b'{"model": "small"}', "messages must be an array, not None"),
        (b'{"messages": {}}', "messages must be an array, not {}"),
        (b'{"messages": "Hello"}', "messages must be an array, not 'Hello'"),
        (b'{"messages": ["Hello"]}', "a message must be an object, not 'Hello'"),
        (b'{"messages": [{"content": 0}]}', "content must be a string or an array, not 0"),
        (b'{"messages": [{"content": {}}]}', "content must be a string or an array, not {}"),
        (b'{"messages": [{"content": ["Hello"]}]}', "a part must be an object, not 'Hello'"),
        (b'{"messages": [{"content": [{"type": "text"}]}]}', "text must be a string, not None"),
        (b'{"messages": [{"content": [{"type": "text", "text": [1]}]}]}', "text must be a string, not [1]"),
        (b'{"messages": [], "max_tokens": "many"}', "max_tokens must be from 0 to 2147483647, not 'many'"),
        (b'{"messages": [], "max_tokens": true}', "max_tokens must be from 0 to 2147483647, not True"),
        (b'{"messages": [], "max_tokens": 1.0}', "max_tokens must be from 0 to 2147483647, not 1.0"),
        (b'{"messages": [], "max_tokens": NaN}', "max_tokens must be from 0 to 2147483647, not nan"),
        (b'{"messages": [], "max_tokens": -1}', "max_tokens must be from 0 to 2147483647, not -1"),
        (b'{"messages": [], "max_tokens": 2147483648}', "max_tokens must be from 0 to 2147483647, not 2147483648"),
        (
            b'{"messages": [], "max_completion_tokens": -1}',
            "max_completion_tokens must be from 0 to 2147483647, not -1",
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
        ("GET", "/v2/models", 404, None),
        ("POST", "/v1/chat/completions/", 404, None),
        ("GET", "//[", 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/chat/completions", 405, "POST"),
        ("OPTIONS", "/v1/chat/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("PUT", "/v1/models/small", 405, "GET, HEAD"),
        ("PATCH", "/v1/models/small", 405, "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"GET /v1/models HTTP/1.1\r\n\r\n"])
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
        (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length:\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
        (b"GET /v1/models HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2.0\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %b\r\n\r\n{}" % (b"9" * 5000), 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n{}", 413),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}", 413),
        (b"GET /v1/models HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"BREW /v1/models HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 501),
        (b"GET /%b HTTP/1.1\r\n\r\n" % (b"x" * 70_000), 414),
        (b"GET / HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * 70_000), 431),
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
    answered = raw(gateway.port, request_sent + b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n")
    head, _, body = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 5_000_000])
def test_a_body_may_have_a_mebibyte_and_one_that_has_more_is_refused_while_it_comes(client: Client, size: int) -> None:
    status, _, answer = client.chat(b" " * (size - 16) + b'{"messages": []}')
    if size == 2**20:
        assert status == 200
    else:
        message = f"the body must not have more than 1048576 bytes, and has {size}"
        assert (status, answer["error"]["message"]) == (413, message)


def test_a_client_that_asks_whether_it_may_send_the_body_is_told(gateway: Running) -> None:
    body = json.dumps(saying("one", model="small")).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    )
    answered = raw(gateway.port, head % len(body) + body)
    assert answered.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_a_body_that_ends_early_is_refused(gateway: Running) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        connection.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"messages": ')
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            assert file.read().startswith(b"HTTP/1.1 400 ")


def test_requests_that_are_sent_at_once_are_answered_in_order(gateway: Running) -> None:
    requests = [b"GET /v1/models/%b HTTP/1.1\r\n\r\n" % name for name in (b"small", b"none", b"large")]
    last = b"GET /v1/models/chat HTTP/1.1\r\nConnection: close\r\n\r\n"
    answered = raw(gateway.port, b"".join(requests) + last)
    found = [answered.index(text) for text in (b'"id": "small"', b"`none`", b'"id": "large"', b'"id": "chat"')]
    assert found == sorted(found)


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
    gateway = module.Gateway(config, "127.0.0.1", 0)
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
        head = b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
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
        assert gateway.logged() == ""


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


# The start.


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path, gateway: Running) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text('schema = 2\ndefualt = "x"\n', encoding="utf-8")
    for arguments, reasons in (
        (["--config", str(broken)], ["schema must be 1, not 2", "defualt is not a known key; did you mean 'default'?"]),
        (["--config", str(tmp_path / "gone.toml")], ["the file cannot be read"]),
        (["--port", str(gateway.port)], ["in use"]),
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
        port = int(stdout.readline().decode().rpartition(":")[2])
        assert ids(port)[:2] == ["bonsai-8b", "bonsai-70b"]
        process.terminate()
        process.wait(PATIENCE)

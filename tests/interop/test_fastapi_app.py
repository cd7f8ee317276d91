"""Drives docs/examples/fastapi_app.py over real sockets, with OpenAI's own client and without."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install uvicorn")

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"

# In seconds; far more than anything here takes.
PATIENCE = 30

# What the example configuration lacks.
MORE = """
[[endpoints]]
id = "bonsai-405b"
base_model = "qwen3-405b"
max_context_length = 131072
status = "disabled"

[[endpoints]]
id = "acme/bonsai-1b"
base_model = "qwen3-1b"
max_context_length = 8192

[[endpoints]]
id = "slow"
base_model = "slow"
max_context_length = 8192

[[endpoints]]
id = "damaged"
base_model = "damaged"
max_context_length = 8192
"""


@dataclass
class Server:
    """The app in a process of its own."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def client(self) -> Any:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", timeout=PATIENCE)

    def send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, body: object) -> tuple[int, dict[str, str], bytes]:
        return self.send("POST", "/v1/chat/completions", json.dumps(body).encode())

    def begin(self, model: str, text: str, stream: bool) -> socket.socket:
        """Send a request, and return the connection, on which the answer is to come."""
        body = json.dumps({"model": model, "messages": asking(text), "stream": stream}).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def metrics(self) -> dict[str, int]:
        """Return the values of the metrics by names with labels."""
        _, headers, body = self.send("GET", "/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        samples = (line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
        return {name: int(value) for name, value in samples}

    def in_flight(self, model: str) -> int:
        return self.metrics()[f'bonsai_in_flight{{model="{model}"}}']

    def ended(self, model: str, outcome: str) -> int:
        return self.metrics().get(f'bonsai_requests_total{{model="{model}",outcome="{outcome}"}}', 0)


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(log: Path, *command: object) -> Iterator[Server]:
    """Start a server, and in the end stop it by SIGTERM, if it has not been stopped."""
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=output, stderr=output)
    try:
        wait_until(lambda: b"running on" in log.read_bytes() or process.poll() is not None)
        address = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert address is not None, log.read_text()
        yield Server(process, int(address[1]), log)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        assert "Application shutdown complete" in log.read_text()
        assert "freed while" not in log.read_text()
    finally:
        process.kill()
        process.wait(PATIENCE)


@contextmanager
def obedient(directory: Path, capacity: int) -> Iterator[Server]:
    """Start the app over the engine that does what a prompt says."""
    config = directory / "models.toml"
    config.write_text((EXAMPLES / "models.toml").read_text() + MORE)
    with serving(directory / "log", Path(__file__).with_name("fastapi_engine.py"), config, capacity) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with obedient(tmp_path_factory.mktemp("app"), 4) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        yield client


def test_the_example_runs_by_itself(tmp_path: Path) -> None:
    command = EXAMPLES / "fastapi_app.py", EXAMPLES / "models.toml", "--port", 0
    with serving(tmp_path / "log", *command) as server, server.client() as client:
        answer = client.chat.completions.create(model="gpt-4o-mini", messages=asking("Hello!"))
        assert answer.choices[0].message.content == "qwen3-8b with code: Hello!"


def test_a_broken_configuration_is_named_and_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text("schema = 2")
    command = [sys.executable, str(EXAMPLES / "fastapi_app.py"), str(tmp_path / "models.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "schema" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_has_what_can_be_loaded_and_the_aliases(client: Any) -> None:
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == [
        *("bonsai-8b", "bonsai-70b", "acme/bonsai-1b", "slow", "damaged"),
        *("bonsai-8b:code", "bonsai-8b:math", "bonsai-70b:law", "chat", "gpt-4o-mini"),
    ]
    adapter = cards["bonsai-8b:math"]
    assert (adapter.root, adapter.parent, adapter.max_model_len) == ("qwen3-8b", "bonsai-8b", 16384)


@pytest.mark.parametrize("name", ["bonsai-8b", "bonsai-70b:law", "acme/bonsai-1b", "gpt-4o-mini"])
def test_a_model_is_retrieved_by_id_and_alias_without_being_loaded(client: Any, name: str) -> None:
    assert client.models.retrieve(name).id == name


@pytest.mark.parametrize(
    ("model", "name", "who"),
    [
        ("bonsai-8b", "bonsai-8b", "qwen3-8b"),
        ("acme/bonsai-1b", "acme/bonsai-1b", "qwen3-1b"),
        ("gpt-4o-mini", "gpt-4o-mini", "qwen3-8b with code"),
        (None, "bonsai-8b", "qwen3-8b"),
    ],
)
def test_a_model_is_loaded_and_answers_under_the_name_requested(client: Any, model: Any, name: str, who: str) -> None:
    answer = client.chat.completions.create(model=model, messages=asking("Hello!"))
    assert (answer.model, answer.choices[0].message.content) == (name, f"{who}: Hello!")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 1
    assert answer.usage.completion_tokens == len(f"{who}: Hello!".split())


def test_a_stream_says_what_the_whole_answer_says_and_ends_with_the_usage(client: Any) -> None:
    request = {"model": "chat", "messages": asking("One, two, three."), "stream_options": {"include_usage": True}}
    whole = client.chat.completions.create(**request)
    *chunks, last = client.chat.completions.create(**request, stream=True)
    choices = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert choices[0].delta.role == "assistant"
    assert choices[-1].finish_reason == whole.choices[0].finish_reason == "stop"
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {chunk.id for chunk in chunks} == {last.id}


def test_a_stream_has_no_usage_unless_it_is_wanted_and_is_not_to_be_buffered(server: Server) -> None:
    status, headers, body = server.post({"messages": asking("Hello!"), "stream": True})
    assert (status, headers["cache-control"], headers["x-accel-buffering"]) == (200, "no-cache", "no")
    *chunks, end = body.decode().removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    assert all(json.loads(chunk.removeprefix("data: "))["choices"] for chunk in chunks)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_ends_an_answer(client: Any, limit: str) -> None:
    request: dict[str, Any] = {"model": "bonsai-8b", "messages": asking("one two three four")}
    short = client.chat.completions.create(**request, **{limit: 2})
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("qwen3-8b: one", "length")
    for none in (-1, None):
        long = client.chat.completions.create(**request, extra_body={limit: none})
        assert long.choices[0].finish_reason == "stop"


def test_the_text_parts_of_a_content_are_joined(client: Any) -> None:
    parts = [{"type": "text", "text": "One, "}, {"type": "text", "text": "two."}]
    answer = client.chat.completions.create(model="bonsai-8b", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == "qwen3-8b: One, two."


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found_and_names_like_it_are_suggested(client: Any, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="bonsia-70b", messages=asking("Hello?"), stream=stream)
    assert caught.value.code == "model_not_found"
    assert "The model `bonsia-70b` does not exist. Did you mean bonsai-70b" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing/like:it")


@pytest.mark.parametrize("stream", [False, True])
def test_a_disabled_model_is_asked_exactly_once(client: Any, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="bonsai-405b", messages=asking("Hello?"), stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_ready")
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_cannot_be_loaded_is_not_ready_and_may_be_asked_again(server: Server, stream: bool) -> None:
    status, headers, body = server.post({"model": "damaged", "messages": asking("Hello?"), "stream": stream})
    assert (status, headers["retry-after"]) == (503, "30")
    assert json.loads(body)["error"]["code"] == "model_not_ready"
    assert b"cannot be read" not in body


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_bad_request_and_loads_nothing(
    client: Any, server: Server, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="bonsai-70b", messages=asking("word " * 131073), stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "This model's maximum context length is 131072 tokens" in str(caught.value)
    assert 'bonsai_loads_total{model="bonsai-70b"}' not in server.metrics()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{", None),
        ("\xff", None),
        ("[" * 10000, None),
        ("[]", None),
        ("{}", "messages"),
        ('{"messages": "Hello"}', "messages"),
        ('{"messages": []}', "messages"),
        ('{"messages": [5]}', "messages[0]"),
        ('{"messages": [{"content": "Hello"}]}', "messages[0].role"),
        ('{"messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "messages[0].content[0].text"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "messages[0].content[0].type"),
        ('{"messages": [{"role": "user"}], "model": 5}', "model"),
        ('{"messages": [{"role": "user"}], "stream": "yes"}', "stream"),
        ('{"messages": [{"role": "user"}], "stream_options": true}', "stream_options"),
        ('{"messages": [{"role": "user"}], "max_tokens": -2}', "max_tokens"),
        ('{"messages": [{"role": "user"}], "max_tokens": true}', "max_tokens"),
        ('{"messages": [{"role": "user"}], "max_completion_tokens": 1e99}', "max_completion_tokens"),
    ],
)
def test_a_malformed_body_is_a_bad_request_that_names_the_field(server: Server, body: str, param: str | None) -> None:
    status, _, answer = server.send("POST", "/v1/chat/completions", body.encode("latin-1"))
    error = json.loads(answer)["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param is None or error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/v1/models", 405), ("GET", "/health", 200)]
)
def test_every_path_has_an_answer_in_json(server: Server, method: str, path: str, status: int) -> None:
    answered, _, body = server.send(method, path)
    assert answered == status
    assert ("error" in json.loads(body)) == (status >= 400)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_at_once_is_an_error_and_is_asked_exactly_once(
    client: Any, server: Server, stream: bool
) -> None:
    before = server.ended("bonsai-8b", "engine_error")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="bonsai-8b", messages=asking("break at once"), stream=stream)
    assert (caught.value.status_code, caught.value.type) == (500, "server_error")
    assert "own words" not in str(caught.value.body)
    assert server.ended("bonsai-8b", "engine_error") == before + 1


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error(client: Any, server: Server) -> None:
    said = []
    with pytest.raises(openai.APIError, match="The engine failed"):
        for chunk in client.chat.completions.create(model="bonsai-8b", messages=asking("break later"), stream=True):
            said += [chunk.choices[0].delta.content]
    assert said == ["qwen3-8b:", " break"]
    status, _, body = server.post({"model": "bonsai-8b", "messages": asking("break later"), "stream": True})
    assert status == 200
    assert body.count(b"data: ") == 3
    assert b"[DONE]" not in body
    status, _, _ = server.post({"model": "bonsai-8b", "messages": asking("break later")})
    assert status == 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_while_the_model_is_loaded_is_counted_no_more(tmp_path: Path, stream: bool) -> None:
    with obedient(tmp_path, 2) as server:
        with server.begin("slow", "Hello?", stream):
            wait_until(lambda: server.in_flight("slow") == 1)
        wait_until(lambda: server.in_flight("slow") == 0)
        assert server.ended("slow", "hung_up") == 1
        # The load goes on, and serves the next request.
        answer = server.client().chat.completions.create(model="slow", messages=asking("Hello!"))
        assert answer.choices[0].message.content == "slow: Hello!"
        assert server.metrics()['bonsai_loads_total{model="slow"}'] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_during_the_answer_is_counted_no_more(server: Server, stream: bool) -> None:
    before = server.ended("acme/bonsai-1b", "hung_up")
    with server.begin("acme/bonsai-1b", "never end", stream) as connection:
        wait_until(lambda: server.in_flight("acme/bonsai-1b") == 1)
        if stream:
            assert b"200 OK" in connection.recv(100)
    wait_until(lambda: server.in_flight("acme/bonsai-1b") == 0)
    assert server.ended("acme/bonsai-1b", "hung_up") == before + 1


def test_a_client_that_does_not_read_its_stream_is_counted_until_it_hangs_up(server: Server) -> None:
    before = server.ended("acme/bonsai-1b", "hung_up")
    with server.begin("acme/bonsai-1b", "flood", True) as connection:
        assert b"200 OK" in connection.recv(100)
        # By now the buffers between the two are full.
        time.sleep(0.5)
        assert server.in_flight("acme/bonsai-1b") == 1
    wait_until(lambda: server.in_flight("acme/bonsai-1b") == 0)
    assert server.ended("acme/bonsai-1b", "hung_up") == before + 1


def test_a_model_is_unloaded_only_after_the_step_that_its_client_did_not_wait_for(tmp_path: Path) -> None:
    with obedient(tmp_path, 1) as server:
        with server.begin("bonsai-8b", "block", False):
            wait_until(lambda: server.in_flight("bonsai-8b") == 1)
            # The engine is in the step that takes a second.
            time.sleep(0.3)
        wait_until(lambda: server.ended("bonsai-8b", "hung_up") == 1)
        answer = server.client().chat.completions.create(model="acme/bonsai-1b", messages=asking("Hello!"))
        assert answer.choices[0].message.content == "qwen3-1b: Hello!"
        assert server.metrics()['bonsai_unloads_total{model="bonsai-8b"}'] == 1


def test_a_reload_keeps_serving_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    with obedient(tmp_path, 2) as server, server.client() as client:
        config = tmp_path / "models.toml"
        text = config.read_text()
        stream = client.chat.completions.create(model="bonsai-8b", messages=asking("never end"), stream=True)
        fingerprint = next(stream).system_fingerprint

        config.write_text("schema = 1\n[[endpoints]]\n")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in server.log.read_text())
        assert next(stream).system_fingerprint == fingerprint

        config.write_text(text.replace("qwen3-8b", "qwen4-8b") + MORE.replace("acme/", "new/").split("\n\n")[1])
        for _ in range(60):
            server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "new/bonsai-1b" in [card.id for card in client.models.list()])
        # The old version goes on until the stream ends, and new requests wait for the new one.
        wait_until(lambda: server.metrics().get('bonsai_draining{model="bonsai-8b"}') == 1)
        assert next(stream).system_fingerprint == fingerprint
        stream.close()
        answer = client.chat.completions.create(model="bonsai-8b", messages=asking("Hello!"))
        assert answer.choices[0].message.content == "qwen4-8b: Hello!"
        assert answer.system_fingerprint != fingerprint
        answer = client.chat.completions.create(model="new/bonsai-1b", messages=asking("Hello!"))
        assert answer.choices[0].message.content == "qwen3-1b: Hello!"


def test_sigterm_lets_the_requests_in_flight_finish_and_unloads_the_models(tmp_path: Path) -> None:
    with obedient(tmp_path, 2) as server, server.begin("slow", "Hello!", True) as connection:
        wait_until(lambda: server.in_flight("slow") == 1)
        server.process.send_signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b"data: [DONE]" in answer
        server.process.wait(PATIENCE)
        assert "slow was unloaded" in server.log.read_text()


def test_the_metrics_count_requests_loads_and_unloads_by_model(tmp_path: Path) -> None:
    with obedient(tmp_path, 1) as server:
        for model in ("bonsai-8b", "bonsai-8b", "acme/bonsai-1b", "bonsai-9000b"):
            server.post({"model": model, "messages": asking("Hello!")})
        found = server.metrics()
    assert {name: value for name, value in found.items() if "in_flight" not in name} == {
        'bonsai_requests_total{model="bonsai-8b",outcome="ok"}': 2,
        'bonsai_requests_total{model="acme/bonsai-1b",outcome="ok"}': 1,
        # Names that clients make up would be metrics without end.
        'bonsai_requests_total{model="",outcome="model_not_found"}': 1,
        'bonsai_loads_total{model="bonsai-8b"}': 1,
        'bonsai_loads_total{model="acme/bonsai-1b"}': 1,
        'bonsai_unloads_total{model="bonsai-8b"}': 1,
    }


def test_the_names_in_the_metrics_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(
        json.dumps({"schema": 1, "endpoints": [{"id": 'a\\b"c', "base_model": "x", "max_context_length": 8}]})
    )
    command = Path(__file__).with_name("fastapi_engine.py"), tmp_path / "models.json", 1
    with serving(tmp_path / "log", *command) as server:
        assert server.in_flight(r"a\\b\"c") == 0

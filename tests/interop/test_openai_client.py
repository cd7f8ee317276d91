"""Drives the gateway with OpenAI's own client, through docs/examples/openai_client.py and directly."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bonsai_routing.config import RoutingConfig

openai = pytest.importorskip("openai", reason="needs OpenAI's client: pip install openai")

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"

# In seconds; far more than anything here takes.
PATIENCE = 30

# What the example configuration lacks.
NOT_READY = """
[[endpoints]]
id = "bonsai-405b"
base_model = "qwen3-405b"
max_context_length = 131072
status = "disabled"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example configuration's file, with one more endpoint that is disabled."""
    path = tmp_path_factory.mktemp("gateway") / "models.toml"
    path.write_text((EXAMPLES / "models.toml").read_text() + NOT_READY)
    return path


@pytest.fixture(scope="module")
def base_url(config: Path) -> Iterator[str]:
    """Start the gateway, return where its API is, and stop it in the end."""
    command = [sys.executable, str(EXAMPLES / "gateway.py"), "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None
            line = gateway.stdout.readline()
            listening = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+) \(PID \d+\)", line.strip())
            assert listening is not None, f"the gateway says {line!r}"
            yield f"{listening[1]}/v1"
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(PATIENCE) == 0
        finally:
            gateway.kill()


@pytest.fixture
def client(base_url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=base_url, api_key="none", timeout=PATIENCE) as client:
        yield client


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def listed(config: Path) -> list[str]:
    """Return the ids of the endpoints that are ready, in the order in which a registry has them, and the aliases."""
    routing = RoutingConfig.read(config)
    ready = [endpoint.id.value for endpoint in routing.registry().available_endpoints()]
    return ready + [alias for alias, _ in routing.aliases]


def test_the_example_shows_each_kind_of_request(base_url: str, config: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "openai_client.py"), "--base-url", base_url, "--not-ready", "bonsai-405b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    shown = {key: text.strip() for key, _, text in (line.partition(":") for line in done.stdout.splitlines())}
    assert shown["models"].split() == listed(config)
    assert shown["retrieved"] == "bonsai-8b:code, made of qwen3-8b, on bonsai-8b, 32768 tokens"
    assert shown["an adapter"].startswith("bonsai-8b:code: ")
    assert shown["an alias"].startswith("chat: ")
    assert "Count to three." in shown["streamed"]
    assert shown["unknown"] == "NotFoundError 404 model_not_found"
    assert shown["too long"] == "BadRequestError 400 context_length_exceeded"
    assert shown["not ready"] == "InternalServerError 503 model_not_ready"


def test_the_client_lists_the_ready_models_with_all_their_fields(client: Any, config: Path) -> None:
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == listed(config)
    base, adapter = cards["bonsai-8b"], cards["bonsai-8b:math"]
    assert (base.object, base.root, base.parent, base.max_model_len) == ("model", "qwen3-8b", None, 32768)
    assert (adapter.root, adapter.parent, adapter.max_model_len) == ("qwen3-8b", "bonsai-8b", 16384)
    assert isinstance(base.created, int)
    assert base.owned_by


@pytest.mark.parametrize("name", ["bonsai-8b", "bonsai-8b:code", "gpt-4o-mini"])
def test_the_client_retrieves_a_model_by_id_and_alias(client: Any, name: str) -> None:
    assert client.models.retrieve(name).id == name


def test_an_adapter_and_an_alias_of_it_answer_alike_under_the_names_requested(client: Any) -> None:
    answers = [
        client.chat.completions.create(model=name, messages=asking("Hello!"))
        for name in ("bonsai-8b:code", "gpt-4o-mini")
    ]
    assert [answer.model for answer in answers] == ["bonsai-8b:code", "gpt-4o-mini"]
    texts = [answer.choices[0].message.content for answer in answers]
    for text in texts:
        assert "qwen3-8b" in text
        assert "code" in text
        assert "Hello!" in text
    assert answers[0].choices[0].finish_reason == "stop"


def test_a_stream_says_what_the_whole_answer_says(client: Any) -> None:
    request = {"model": "chat", "messages": asking("One, two, three, four, five.")}
    whole = client.chat.completions.create(**request).choices[0]
    chunks = list(client.chat.completions.create(**request, stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.message.content
    assert choices[-1].finish_reason == whole.finish_reason == "stop"
    assert {chunk.model for chunk in chunks} == {"chat"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: Any, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="bonsai-9b", messages=asking("Hello?"), stream=stream)
    assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")
    assert "The model `bonsai-9b` does not exist" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("bonsai-9b")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_bad_request(client: Any, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="bonsai-8b:math", messages=asking("word " * 16384), stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "This model's maximum context length is 16384 tokens" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_disabled_model_is_asked_exactly_once(client: Any, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="bonsai-405b", messages=asking("Hello?"), stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_ready")
    # The client numbers the retries of a request from 0, and would retry a 503 twice.
    assert client.max_retries == 2
    assert caught.value.request.headers["x-stainless-retry-count"] == "0"

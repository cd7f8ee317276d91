"""Runs docs/examples/ray_serve.py in a Ray cluster of its own, on this machine."""

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from bonsai_routing.config import RoutingConfig

ray = pytest.importorskip("ray", reason="needs Ray Serve: pip install 'ray[serve]'")
serve = pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'ray[serve]'")
ray_context = pytest.importorskip("ray.serve.context", reason="needs Ray Serve: pip install 'ray[serve]'")
ray_schema = pytest.importorskip("ray.serve.schema", reason="needs Ray Serve: pip install 'ray[serve]'")

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"

# In seconds; far more than a change takes.
PATIENCE = 30

BROKEN: dict[str, object] = {"schema": 1, "aliases": {"chat": "nothing"}}


@dataclass
class Reply:
    """An answer of one of the replicas."""

    replica: str
    status: int
    body: dict[str, object]

    def ids(self) -> list[str]:
        """Return the ids of a list of models."""
        cards = self.body["data"]
        assert isinstance(cards, list)
        return [card["id"] for card in cards]

    def text(self) -> str:
        """Return what the assistant says."""
        choices = self.body["choices"]
        assert isinstance(choices, list)
        text = choices[0]["message"]["content"]
        assert isinstance(text, str)
        return text

    def code(self) -> object:
        """Return the code of an error."""
        error = self.body["error"]
        assert isinstance(error, dict)
        return error["code"]


@dataclass
class Cluster:
    """A local Ray cluster that serves on *port* of 127.0.0.1 and keeps the logs of the replicas in *logs*."""

    port: int
    logs: Path

    def deploy(self, user_config: dict[str, object]) -> None:
        """Do what ``serve deploy`` does, which itself would need the dashboard."""
        gateway = {"name": "Gateway", "user_config": user_config, "ray_actor_options": {"num_cpus": 0}}
        application = {
            "name": "bonsai",
            "import_path": "ray_serve:app",
            "logging_config": {"logs_dir": str(self.logs)},
            "deployments": [gateway],
        }
        config = ray_schema.ServeDeploySchema(applications=[application])
        ray_context._get_global_client().deploy_apps(config, _blocking=True)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return Reply(response.headers["x-replica"], response.status, json.loads(response.read()))
        finally:
            connection.close()

    def models(self) -> Reply:
        reply = self.ask("GET", "/v1/models")
        assert reply.status == 200
        return reply

    def chat(self, model: str | None, text: str = "Hello!") -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return self.ask("POST", "/v1/chat/completions", json.dumps(body).encode())

    def replicas_that_list(self, ids: list[str], beside: list[str]) -> set[str]:
        """Ask until both replicas list *ids*, and return which they are; until then they may list those *beside*."""
        end = time.monotonic() + PATIENCE
        latest: dict[str, list[str]] = {}
        while list(latest.values()) != [ids, ids]:
            assert time.monotonic() < end, f"the replicas list {latest}, not {ids}"
            reply = self.models()
            assert reply.ids() in (ids, beside)
            latest[reply.replica] = reply.ids()
        return set(latest)

    def have_logged(self, text: str) -> set[str]:
        """Return which replicas have logged *text*."""
        return {log.stem.rpartition("_")[2] for log in self.logs.glob("replica_*.log") if text in log.read_text()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        # The workers inherit the environment, and import the example by its name.
        patch.setenv("PYTHONPATH", str(EXAMPLES), prepend=os.pathsep)
        patch.syspath_prepend(EXAMPLES)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield Cluster(port, tmp_path_factory.mktemp("logs"))
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture
def start() -> dict[str, object]:
    return RoutingConfig.read(EXAMPLES / "models.toml").to_mapping()


@pytest.fixture
def grown(start: dict[str, object]) -> dict[str, object]:
    """Return the example configuration with one more endpoint, the first of all."""
    endpoints = start["endpoints"]
    assert isinstance(endpoints, list)
    return {
        **start,
        "endpoints": [{"id": "bonsai-14b", "base_model": "qwen3-14b", "max_context_length": 32768}, *endpoints],
    }


@pytest.fixture
def replicas(cluster: Cluster, start: dict[str, object], grown: dict[str, object]) -> set[str]:
    """Return the two replicas, both of which serve the example configuration."""
    cluster.deploy(start)
    return cluster.replicas_that_list(ids(start), beside=ids(grown))


def ids(mapping: dict[str, object]) -> list[str]:
    """Return the ids of a configuration, in the order in which a registry has them."""
    return [endpoint.id.value for endpoint in RoutingConfig.from_mapping(mapping).registry()]


def test_both_replicas_serve_the_configuration(cluster: Cluster, replicas: set[str]) -> None:
    assert len(replicas) == 2
    reply = cluster.chat("gpt-4o-mini")
    assert (reply.status, reply.body["model"]) == (200, "gpt-4o-mini")
    assert reply.text().startswith("qwen3-8b, adapter code, generation ")
    assert reply.text().endswith(": Hello!")
    assert cluster.chat(None).body["model"] == "bonsai-8b"


def test_what_cannot_be_answered_is_refused_as_openai_does(cluster: Cluster, replicas: set[str]) -> None:
    reply = cluster.chat("bonsai-9b")
    assert (reply.status, reply.code()) == (404, "model_not_found")
    reply = cluster.chat("bonsai-8b", "word " * 32768)
    assert (reply.status, reply.code()) == (400, "context_length_exceeded")
    for body in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"model": 1, "messages": []}', b'{"messages": [1]}'):
        assert cluster.ask("POST", "/v1/chat/completions", body).status == 400
    assert cluster.ask("GET", "/v1/nothing").status == 404
    assert cluster.chat("bonsai-8b", "\ud800").text().endswith(": \ud800")


def test_one_change_reaches_both_replicas_in_place(
    cluster: Cluster, replicas: set[str], start: dict[str, object], grown: dict[str, object]
) -> None:
    before = cluster.chat("bonsai-8b").text()
    assert cluster.chat("bonsai-14b").status == 404
    cluster.deploy(grown)
    assert cluster.replicas_that_list(ids(grown), beside=ids(start)) == replicas
    assert cluster.chat("bonsai-14b").text().startswith("qwen3-14b, adapter None, ")
    # An endpoint that did not change has the generation that it had; in a new registry it would not be the first.
    assert cluster.chat("bonsai-8b").text() == before


def test_a_broken_change_leaves_the_old_configuration_serving(
    cluster: Cluster, replicas: set[str], start: dict[str, object], grown: dict[str, object]
) -> None:
    cluster.deploy(BROKEN)
    end = time.monotonic() + PATIENCE
    while not cluster.have_logged("'nothing'") >= replicas:
        assert time.monotonic() < end, "the replicas have not logged what is wrong"
        assert cluster.models().ids() == ids(start)
    assert cluster.replicas_that_list(ids(start), beside=[]) == replicas
    # The next sound change is followed in place, too.
    cluster.deploy(grown)
    assert cluster.replicas_that_list(ids(grown), beside=ids(start)) == replicas


def test_a_first_configuration_that_is_broken_fails(cluster: Cluster) -> None:
    gateway = import_module("ray_serve").Gateway.options(
        num_replicas=1, user_config=BROKEN, ray_actor_options={"num_cpus": 0}
    )
    with pytest.raises(RuntimeError, match="broken"):
        serve.run(gateway.bind(), name="broken", route_prefix="/broken")
    assert serve.status().applications["broken"].status == "DEPLOY_FAILED"

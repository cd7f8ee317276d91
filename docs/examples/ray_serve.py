# /// script
# requires-python = ">=3.11"
# dependencies = ["ray[serve]"]
# ///
"""Serves one directory from many replicas, on as many machines as a Ray cluster has, and changes it in place.

The configuration is the deployment's ``user_config``: the mapping of ``RoutingConfig``, by default that of models.toml.
bonsai_routing itself is installed from the checkout, and ``serve run ray_serve:app`` in this directory tries it out.

Running that again, or ``serve.run()``, restarts every replica, which loses leases and live status.
``serve deploy models.yaml`` changes a running cluster (``ray start --head``) in place: the first one starts the
replicas, and the next one, after an edit of nothing but ``user_config``, calls their ``reconfigure``::

    applications:
      - name: bonsai
        import_path: ray_serve:app
        deployments:
          - name: Gateway
            user_config:
              schema: 1
              endpoints: [{id: bonsai-8b, base_model: qwen3-8b, max_context_length: 32768}]

The module must be importable on every machine, by ``PYTHONPATH`` or by the application's ``runtime_env``.
"""

import json
import logging
import math
import time
import uuid
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from bonsai_routing import Lease, ModelRegistry, ModelRouter, RoutingError
from bonsai_routing.config import RoutingConfig
from bonsai_routing.openai import error_response, models_response

logger = logging.getLogger("ray.serve")


@serve.deployment(num_replicas=2, user_config=RoutingConfig.read(Path(__file__).with_name("models.toml")).to_mapping())
class Gateway:
    def __init__(self) -> None:
        self.router = ModelRouter(ModelRegistry())
        self.configured = False

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Follow a configuration: called before the first request, and again in place whenever it has changed."""
        try:
            self.router.registry.replace_with(RoutingConfig.from_mapping(user_config).registry())
            self.configured = True
        except Exception as error:
            if not self.configured:
                raise
            # Raising now would make Ray stop this replica, and its successor would fail on the same configuration.
            logger.error("The new configuration is refused, and the old one serves on:\n%s", error)

    async def __call__(self, request: Request) -> Response:
        match request.method, request.url.path:
            case "GET", "/v1/models":
                return answer(200, models_response(self.router))
            case "POST", "/v1/chat/completions":
                return self.chat(await request.body())
        return refuse(404, f"There is no {request.method} {request.url.path}.")

    def chat(self, body: bytes) -> Response:
        try:
            model, text = parse(body)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return refuse(400, "The body must be JSON: model a text, messages an array, and each content a text.")
        try:
            # A rough number of tokens. An engine's work goes into this block, whatever is reconfigured meanwhile.
            with self.router.lease(model, math.ceil(len(text) / 4)) as lease:
                return answer(200, completion(lease, model, text))
        except RoutingError as error:
            refusal = error_response(error)
            return answer(refusal.status, refusal.body, refusal.headers)


def parse(body: bytes) -> tuple[str | None, str]:
    """Return which model a body asks for, and its messages in one text."""
    request = json.loads(body)
    if not isinstance(model := request.get("model"), str | None):
        raise TypeError
    return model, "\n".join(message["content"] for message in request["messages"])


def completion(lease: Lease, model: str | None, text: str) -> dict[str, object]:
    endpoint, name = lease.endpoint, model or lease.endpoint.id.value
    echo = f"{endpoint.base_model}, adapter {endpoint.adapter}, generation {lease.generation}: {text}"
    choice = {"index": 0, "message": {"role": "assistant", "content": echo}, "finish_reason": "stop"}
    facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
    return {**facts, "model": name, "choices": [choice]}


def refuse(status: int, message: str) -> Response:
    return answer(status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}})


def answer(status: int, body: dict[str, object], headers: dict[str, str] | None = None) -> Response:
    replica = serve.get_replica_context().replica_id.unique_id
    return Response(json.dumps(body), status, {**(headers or {}), "x-replica": replica}, "application/json")


app = Gateway.bind()

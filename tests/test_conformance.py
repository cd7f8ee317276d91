"""Replays what the compiled reference answered, call by call."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bonsai_routing import (
    AdapterStack,
    EndpointStatus,
    ModelEndpoint,
    ModelId,
    ModelRegistry,
    ModelRouter,
    RoutingError,
)

TRACES = sorted((Path(__file__).parent / "conformance").glob("trace-*.jsonl"))


def shown(endpoint: ModelEndpoint | None) -> dict[str, Any] | None:
    """Return an endpoint as the traces write it."""
    if endpoint is None:
        return None
    return {
        "id": str(endpoint.id),
        "display_name": endpoint.display_name,
        "description": endpoint.description,
        "base_model": endpoint.base_model,
        "adapter": endpoint.adapter,
        "max_context_length": endpoint.max_context_length,
        "is_default": endpoint.is_default,
        "status": str(endpoint.status),
    }


class Replay:
    """One method for each ``op`` of the traces; the keyword arguments are the line's."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.router = ModelRouter(ModelRegistry())
        self.registry = self.router.registry

    def register(
        self,
        id: str,
        base_model: str,
        adapter: str | None,
        description: str | None,
        max_context_length: int,
        is_default: bool,
        status: str,
    ) -> None:
        endpoint = ModelEndpoint(id, base_model, status=status).with_context_length(max_context_length)
        if adapter is not None:
            endpoint = endpoint.with_adapter(adapter)
        if description is not None:
            endpoint = endpoint.with_description(description)
        if is_default:
            endpoint = endpoint.set_default()
        self.registry.register(endpoint)

    def unregister(self, id: str) -> object:
        return shown(self.registry.unregister(ModelId(id)))

    def add_alias(self, alias: str, target: str) -> None:
        self.registry.add_alias(alias, ModelId(target))

    def resolve(self, name: str) -> object:
        return shown(self.registry.resolve(name))

    def default_endpoint(self) -> object:
        return shown(self.registry.default_endpoint())

    def available_endpoints(self) -> object:
        return sorted(str(endpoint.id) for endpoint in self.registry.available_endpoints())

    def all_endpoints(self) -> object:
        return sorted(str(endpoint.id) for endpoint in self.registry.all_endpoints())

    def set_status(self, id: str, status: str) -> object:
        return self.registry.set_status(ModelId(id), EndpointStatus(status))

    def len(self) -> object:
        return {"len": len(self.registry), "is_empty": self.registry.is_empty()}

    def route(self, model: str | None) -> object:
        try:
            return shown(self.router.route(model))
        except RoutingError as error:
            return refused(error)

    def route_for_context(self, model: str | None, required_context: int) -> object:
        try:
            return shown(self.router.route_for_context(model, required_context))
        except RoutingError as error:
            return refused(error)

    def models_list(self) -> object:
        return sorted([entry.id, entry.object, entry.owned_by] for entry in self.router.models_list())

    def model_id(self, id: str) -> object:
        model_id = ModelId(id)
        return {
            "is_base": model_id.is_base(),
            "adapter_name": model_id.adapter_name(),
            "as_str": model_id.as_str(),
            "display": str(model_id),
        }

    def status(self, status: str) -> object:
        word = EndpointStatus(status)
        return {"name": word.value, "is_available": word.is_available()}

    def adapter_stack(self, adapters: list[tuple[str, float]]) -> object:
        stack = AdapterStack()
        for name, weight in adapters:
            stack = stack.add(name, weight)
        answer: dict[str, object] = {
            "len": len(stack),
            "is_empty": stack.is_empty(),
            "total_weight": stack.total_weight(),
        }
        stack.normalize_weights()
        answer["normalized_total"] = stack.total_weight()
        answer["normalized"] = [[ref.name, ref.weight] for ref in stack.adapters]
        return answer


def refused(error: RoutingError) -> dict[str, str]:
    return {"error": type(error).__name__.removesuffix("Error"), "message": str(error)}


def single_precision(expected: Any) -> Any:
    """Return *expected* with its numbers, which are in single precision, made comparable with ours."""
    if isinstance(expected, float):
        return pytest.approx(expected, rel=1e-6, abs=1e-12)
    if isinstance(expected, list):
        return [single_precision(item) for item in expected]
    if isinstance(expected, dict):
        return {key: single_precision(value) for key, value in expected.items()}
    return expected


def calls(path: Path) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            arguments = json.loads(line)
            op, expected = arguments.pop("op"), arguments.pop("expect", None)
            yield f"{path.name}:{number}", op, arguments, expected


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_every_call_answers_as_the_reference_did(path: Path) -> None:
    replay = Replay()
    for where, op, arguments, expected in calls(path):
        answer = getattr(replay, op)(**arguments)
        if op == "adapter_stack":
            expected = single_precision(expected)
        assert answer == expected, f"{where}: {op} {arguments}"


def test_the_traces_are_there_and_call_everything() -> None:
    assert len(TRACES) == 24
    seen = {op for path in TRACES for _, op, _, _ in calls(path)}
    assert seen | {"reset"} == {name for name in vars(Replay) if not name.startswith("_")}

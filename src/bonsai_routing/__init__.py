"""The model directory of a Python LLM server: which names exist, what each one serves, and which one answers."""

from bonsai_routing.adapters import AdapterRef, AdapterStack
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import (
    ContextTooLongError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoModelsAvailableError,
    RoutingError,
)
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry, RegistryChange
from bonsai_routing.router import ModelListEntry, ModelRouter

__all__ = [
    "AdapterRef",
    "AdapterStack",
    "ContextTooLongError",
    "EndpointStatus",
    "ModelEndpoint",
    "ModelId",
    "ModelListEntry",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelRegistry",
    "ModelRouter",
    "NoModelsAvailableError",
    "RegistryChange",
    "RoutingError",
]

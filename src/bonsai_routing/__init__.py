"""The model directory of a Python LLM server: which names exist, what each one serves, and which one answers."""

from importlib import import_module

from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import (
    AdapterBaseError,
    AdapterConfigError,
    AdapterLoadedError,
    ContextTooLongError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoModelsAvailableError,
    RoutingError,
    StaleGenerationError,
)
from bonsai_routing.leases import DrainingEndpoint, Lease
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry, RegistryChange
from bonsai_routing.router import ModelListEntry, ModelRouter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bonsai_routing.adapters import AdapterRef, AdapterStack
    from bonsai_routing.config import ConfigError, RoutingConfig
    from bonsai_routing.engines import (
        llama_cpp_lora,
        lorax_parameters,
        parse_vllm_lora_modules,
        peft_weighted_adapter,
        vllm_load_lora_adapter,
        vllm_lora_modules,
        vllm_unload_lora_adapter,
    )
    from bonsai_routing.lora import AdapterRegistry, LoraAdapter, StackLease, StackMember
    from bonsai_routing.openai import ErrorResponse, error_response, model_response, models_response, suggestions

__all__ = [
    "AdapterBaseError",
    "AdapterConfigError",
    "AdapterLoadedError",
    "AdapterRef",
    "AdapterRegistry",
    "AdapterStack",
    "ConfigError",
    "ContextTooLongError",
    "DrainingEndpoint",
    "EndpointStatus",
    "ErrorResponse",
    "Lease",
    "LoraAdapter",
    "ModelEndpoint",
    "ModelId",
    "ModelListEntry",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelRegistry",
    "ModelRouter",
    "NoModelsAvailableError",
    "RegistryChange",
    "RoutingConfig",
    "RoutingError",
    "StackLease",
    "StackMember",
    "StaleGenerationError",
    "error_response",
    "llama_cpp_lora",
    "lorax_parameters",
    "model_response",
    "models_response",
    "parse_vllm_lora_modules",
    "peft_weighted_adapter",
    "suggestions",
    "vllm_load_lora_adapter",
    "vllm_lora_modules",
    "vllm_unload_lora_adapter",
]

# What is imported when it is first asked for, and from where: who only routes does not wait for it.
_LATER = {
    "AdapterRef": "adapters",
    "AdapterRegistry": "lora",
    "AdapterStack": "adapters",
    "ConfigError": "config",
    "ErrorResponse": "openai",
    "LoraAdapter": "lora",
    "RoutingConfig": "config",
    "StackLease": "lora",
    "StackMember": "lora",
    "error_response": "openai",
    "llama_cpp_lora": "engines",
    "lorax_parameters": "engines",
    "model_response": "openai",
    "models_response": "openai",
    "parse_vllm_lora_modules": "engines",
    "peft_weighted_adapter": "engines",
    "suggestions": "openai",
    "vllm_load_lora_adapter": "engines",
    "vllm_lora_modules": "engines",
    "vllm_unload_lora_adapter": "engines",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'bonsai_routing' has no attribute {name!r}")
    return getattr(import_module(f"bonsai_routing.{_LATER[name]}"), name)

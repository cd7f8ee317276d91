"""The model directory of a Python LLM server: which names exist, what each one serves, and which one answers."""

from bonsai_routing.adapter_registry import AdapterLoad, AdapterRegistry
from bonsai_routing.adapters import AdapterRef, AdapterStack
from bonsai_routing.config import ConfigError, RoutingConfig
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.engines import (
    llama_cpp_lora,
    lorax_parameters,
    parse_vllm_lora_modules,
    peft_weighted_adapter,
    sglang_load_lora_adapter,
    sglang_lora_paths,
    sglang_unload_lora_adapter,
    vllm_load_lora_adapter,
    vllm_lora_modules,
    vllm_unload_lora_adapter,
)
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
from bonsai_routing.leases import DrainingEndpoint, Lease, Publication
from bonsai_routing.loading import LoadingLease, ModelLoader
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.openai import ErrorResponse, error_response, model_response, models_response
from bonsai_routing.registry import ModelRegistry, RegistryChange
from bonsai_routing.router import Candidates, ModelListEntry, ModelRouter
from bonsai_routing.stacks import StackLease, StackMember
from bonsai_routing.suggestions import suggestions

__all__ = [
    "AdapterBaseError",
    "AdapterConfigError",
    "AdapterLoad",
    "AdapterLoadedError",
    "AdapterRef",
    "AdapterRegistry",
    "AdapterStack",
    "Candidates",
    "ConfigError",
    "ContextTooLongError",
    "DrainingEndpoint",
    "EndpointStatus",
    "ErrorResponse",
    "Lease",
    "LoadingLease",
    "LoraAdapter",
    "ModelEndpoint",
    "ModelId",
    "ModelListEntry",
    "ModelLoader",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelRegistry",
    "ModelRouter",
    "NoModelsAvailableError",
    "Publication",
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
    "sglang_load_lora_adapter",
    "sglang_lora_paths",
    "sglang_unload_lora_adapter",
    "suggestions",
    "vllm_load_lora_adapter",
    "vllm_lora_modules",
    "vllm_unload_lora_adapter",
]

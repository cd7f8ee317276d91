"""The model directory of a Python LLM server: which names exist, what each one serves, and which one answers."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bonsai_routing.adapter_registry import AdapterRegistry
    from bonsai_routing.adapters import AdapterRef, AdapterStack
    from bonsai_routing.config import ConfigError, RoutingConfig
    from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
    from bonsai_routing.engines import (
        llama_cpp_lora,
        lorax_parameters,
        parse_vllm_lora_modules,
        peft_weighted_adapter,
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
    from bonsai_routing.leases import DrainingEndpoint, Lease
    from bonsai_routing.lora import LoraAdapter
    from bonsai_routing.model_id import ModelId
    from bonsai_routing.openai import ErrorResponse, error_response, model_response, models_response, suggestions
    from bonsai_routing.registry import ModelRegistry, RegistryChange
    from bonsai_routing.router import ModelListEntry, ModelRouter
    from bonsai_routing.stacks import StackLease, StackMember
else:
    # A name is imported when it is first asked for, from the module that it stands in here. So importing the package
    # costs no more than this file, and nobody waits for what they do not use.
    _MODULES = {
        "AdapterBaseError": "errors",
        "AdapterConfigError": "errors",
        "AdapterLoadedError": "errors",
        "AdapterRef": "adapters",
        "AdapterRegistry": "adapter_registry",
        "AdapterStack": "adapters",
        "ConfigError": "config",
        "ContextTooLongError": "errors",
        "DrainingEndpoint": "leases",
        "EndpointStatus": "endpoint",
        "ErrorResponse": "openai",
        "Lease": "leases",
        "LoraAdapter": "lora",
        "ModelEndpoint": "endpoint",
        "ModelId": "model_id",
        "ModelListEntry": "router",
        "ModelNotFoundError": "errors",
        "ModelNotReadyError": "errors",
        "ModelRegistry": "registry",
        "ModelRouter": "router",
        "NoModelsAvailableError": "errors",
        "RegistryChange": "registry",
        "RoutingConfig": "config",
        "RoutingError": "errors",
        "StackLease": "stacks",
        "StackMember": "stacks",
        "StaleGenerationError": "errors",
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
        from importlib import import_module

        module = _MODULES.get(name, name)
        if module not in _MODULES.values():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = import_module(f"{__name__}.{module}")
        if name in _MODULES:
            # From now on the name is found without asking.
            found = globals()[name] = getattr(found, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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

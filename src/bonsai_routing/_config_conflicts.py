"""Checks whether the values of a configuration fit together, and returns every problem.

Each value is valid by itself. The problems are duplicate ids, adapters that do not fit their base, and names without an
endpoint.
"""

from collections.abc import Collection, Mapping, Sequence

from bonsai_routing._checks import key_path
from bonsai_routing._config_reader import repeated
from bonsai_routing.adapter_registry import AdapterRegistry
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.errors import AdapterLoadedError, ModelNotFoundError
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.registry import ModelRegistry

__all__ = ["find_conflicts"]


def find_conflicts(
    endpoints: Sequence[ModelEndpoint | None],
    adapters: Sequence[LoraAdapter | None],
    aliases: Sequence[tuple[str, str | None]],
    default: str | None,
    unchecked: Collection[str] = (),
    invalid_ids: Collection[str] = (),
) -> list[str]:
    """Return the problems that concern more than a single value.

    ``None`` stands in for an invalid endpoint, adapter or target, so that the others keep their index.
    The weights of an adapter whose id is in *unchecked* are not compared with those of its base.
    If the base of an adapter is in *invalid_ids*, the adapter is not checked, because its base was read only in part.
    """
    problems: list[str] = []
    # The path of the endpoint or adapter that has each id, and a registry to load the adapters into.
    origins: dict[str, str] = {}
    models = ModelRegistry()
    for index, endpoint in enumerate(endpoints):
        if endpoint is None:
            continue
        path, id = f"endpoints[{index}]", endpoint.id.value
        if endpoint.is_default:
            problems.append(f"{path}.is_default must be False: the default is named by the key default")
        if origins.setdefault(id, path) is path:
            models.register(endpoint)
        else:
            problems.append(f"{path}.id is {id!r}, which is the id of {origins[id]}")
    for index, adapter in enumerate(adapters):
        if adapter is None:
            continue
        path, id = f"adapters[{index}]", adapter.id.value
        if origins.setdefault(id, path) is not path:
            problems.append(f"{path}.name makes the id {id!r}, which is the id of {origins[id]}")
    for index, adapter in enumerate(adapters):
        if adapter is not None and adapter.base_model not in invalid_ids:
            check_base = adapter.id.value not in unchecked
            problem = _adapter_problem(f"adapters[{index}]", adapter, check_base, models, origins)
            if problem is not None:
                problems.append(problem)
    return problems + _alias_problems(aliases, default, origins)


def _adapter_problem(
    path: str, adapter: LoraAdapter, check_base: bool, models: ModelRegistry, origins: Mapping[str, str]
) -> str | None:
    """Load an adapter into *models*. Return the problem that prevents it, or ``None``."""
    base = adapter.base_model
    try:
        AdapterRegistry(models).load(adapter, check_base=check_base)
    except AdapterLoadedError:
        # The duplicate id is already noted.
        return None
    except ModelNotFoundError:
        if base not in origins:
            return f"{path}.base_model is {base!r}, which is not an id"
        # The id belongs to an adapter that is not loaded yet.
        rule = "that is an adapter's endpoint, not a base"
    except ValueError as error:
        # Either an AdapterBaseError, or Python cannot convert a very large number to text for that error's message.
        rule = getattr(error, "rule", str(error))
    else:
        return None
    return f"{path} does not fit base model {base!r}: {rule}"


def _alias_problems(
    aliases: Sequence[tuple[str, str | None]], default: str | None, origins: Mapping[str, str]
) -> list[str]:
    """Return the problems of the aliases and the default: duplicates, shadowed aliases, and missing targets."""
    targets = dict(aliases)
    problems = [f"{key_path('aliases', alias)} is given twice" for alias in repeated(alias for alias, _ in aliases)]
    for alias, target in aliases:
        path = key_path("aliases", alias)
        if alias in origins:
            problems.append(f"{path} is shadowed by the id of {origins[alias]}")
        if target is not None and target not in origins:
            what = "an alias, not an id" if target in targets else "not an id"
            problems.append(f"{path} points to {target!r}, which is {what}")
    if default is not None and default not in origins and default not in targets:
        problems.append(f"default is {default!r}, which is neither an id nor an alias")
    return problems

"""Checks whether the values of a configuration fit together, and returns every problem.

Each value has the right type. The problems are names that no client can be expected to send, numbers that other
programs cannot read, duplicate ids, adapters that do not fit their base, and names without an endpoint.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from bonsai_routing._checks import key_path, short_repr
from bonsai_routing._config_reader import repeated
from bonsai_routing._targets import Target, ids_of
from bonsai_routing.adapter_registry import AdapterRegistry
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.errors import AdapterBaseError, AdapterLoadedError, ModelNotFoundError
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.registry import ModelRegistry

__all__ = ["find_conflicts"]

# The largest integer of TOML, and of most programs that read a list of models.
_LARGEST = 2**63 - 1

# The characters of the category Cc, and the separators of lines and paragraphs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def find_conflicts(
    endpoints: Sequence[ModelEndpoint | None],
    adapters: Sequence[LoraAdapter | None],
    aliases: Sequence[tuple[str, Target | None]],
    default: str | None,
    unchecked: Collection[str] = (),
    invalid_ids: Collection[str] = (),
) -> list[str]:
    """Return the problems of names and large numbers, and those that concern more than a single value.

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
        problems += _name_problems(f"{path}.id", id)
        problems += _number_problems(path, endpoint)
        if endpoint.is_default:
            problems.append(f"{path}.is_default must be False: the default is named by the key default")
        if origins.setdefault(id, path) is path:
            models.register(endpoint)
        else:
            problems.append(f"{path}.id is {short_repr(id)}, which is the id of {origins[id]}")
    for index, adapter in enumerate(adapters):
        if adapter is None:
            continue
        path, id = f"adapters[{index}]", adapter.id.value
        problems += _name_problems(f"{path}.name", adapter.name)
        problems += _number_problems(path, adapter)
        if origins.setdefault(id, path) is not path:
            problems.append(f"{path}.name makes the id {short_repr(id)}, which is the id of {origins[id]}")
    for index, adapter in enumerate(adapters):
        path = f"adapters[{index}]"
        if adapter is not None and adapter.base_model not in invalid_ids:
            if _number_problems(path, adapter):
                # These are noted already.
                adapter = replace(adapter, rank=None, max_context_length=None)
            check_base = adapter.id.value not in unchecked
            problem = _adapter_problem(path, adapter, check_base, models, origins)
            if problem is not None:
                problems.append(problem)
    return problems + _alias_problems(aliases, default, origins)


def _name_rule(name: str) -> str | None:
    """Return what is wrong with an id, the name of an adapter or an alias; ``None`` if nothing is."""
    if not name.strip():
        return "is blank"
    if name != name.strip():
        return "begins or ends with white space"
    return "holds a control character" if _CONTROL.search(name) else None


def _name_problems(path: str, name: str) -> list[str]:
    """Return the problem of a name, if it has one, in a list."""
    rule = _name_rule(name)
    return [] if rule is None else [f"{path} is {short_repr(name)}, which {rule}"]


def _number_problems(path: str, value: ModelEndpoint | LoraAdapter) -> list[str]:
    """Return the problems of the whole numbers of an endpoint or an adapter."""
    numbers = {key: getattr(value, key, None) for key in ("rank", "max_context_length")}
    return [
        f"{path}.{key} must be at most {_LARGEST}, not {short_repr(number)}"
        for key, number in numbers.items()
        if number is not None and number > _LARGEST
    ]


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
            return f"{path}.base_model is {short_repr(base)}, which is not an id"
        # The id belongs to an adapter that is not loaded yet.
        rule = "that is an adapter's endpoint, not a base"
    except AdapterBaseError as error:
        rule = error.rule
    else:
        return None
    return f"{path} does not fit base model {short_repr(base)}: {rule}"


def _alias_problems(
    aliases: Sequence[tuple[str, Target | None]], default: str | None, origins: Mapping[str, str]
) -> list[str]:
    """Return the problems of the aliases and the default: bad names, duplicates, shadows, and missing targets."""
    targets = dict(aliases)
    problems = [f"{key_path('aliases', alias)} is given twice" for alias in repeated(alias for alias, _ in aliases)]
    for alias, target in aliases:
        path = key_path("aliases", alias)
        rule = _name_rule(alias)
        if rule is not None:
            problems.append(f"{path} {rule}")
        if alias in origins:
            problems.append(f"{path} is shadowed by the id of {origins[alias]}")
        for id in ids_of(target):
            if id not in origins:
                what = "an alias, not an id" if id in targets else "not an id"
                problems.append(f"{path} points to {short_repr(id)}, which is {what}")
    if default is not None and default not in origins and default not in targets:
        rule = _name_rule(default) or "is neither an id nor an alias"
        problems.append(f"default is {short_repr(default)}, which {rule}")
    return problems

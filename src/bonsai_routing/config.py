"""Configuration: reads a file or a mapping, and builds a registry from it.

The checks have two steps, and each step notes every problem that it finds.
``_config_reader.py`` checks each value of a mapping by itself. ``_config_conflicts.py`` checks whether the values fit
together, also in a configuration that is written in Python.
"""

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bonsai_routing._checks import make_line, short_repr, shorten
from bonsai_routing._config_conflicts import find_conflicts
from bonsai_routing._config_reader import ADAPTER_KEYS, ENDPOINT_KEYS, KEYS, ConfigReader, DuplicateKeys
from bonsai_routing._files import read_file
from bonsai_routing._metadata import thaw
from bonsai_routing._record import Own
from bonsai_routing._targets import ShownTarget, Target, Targets, make_target, shown
from bonsai_routing.adapter_registry import load_adapter
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import RoutingError
from bonsai_routing.leases import Publication
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["ConfigError", "RoutingConfig"]


class ConfigError(RoutingError, ValueError):
    """A configuration cannot be read, or is invalid.

    ``problems`` has a line of text for each problem: the name of the file if there is one, the key, and the rule.
    A line has at most 503 characters. Characters that cannot be printed are escaped.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        lines = tuple(make_line(problem) for problem in problems)
        super().__init__(lines)
        self.problems = lines

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """The contents of a registry: endpoints, the adapters on them, aliases, and the default.

    *aliases* is a tuple of pairs, each an alias and its target id or, if it has several targets, a tuple of what
    :meth:`ModelRegistry.add_alias` takes for each. A dictionary would not be hashable.
    *default* is the id or an alias of the default endpoint, or ``None`` for no default.
    *unchecked* has the ids of the adapters whose weights are not compared with those of their base.
    *adapter_status* has the status of each adapter that is not ready, as pairs of an id and a status.
    No endpoint may have ``is_default=True``, because *default* already names the default.

    Raises ``TypeError`` for an argument of the wrong type, and :class:`ConfigError` if the values do not fit together.

    >>> endpoint = ModelEndpoint("bonsai-8b", "qwen3-8b")
    >>> RoutingConfig((endpoint,), aliases=(("chat", "bonsai-8b"),), default="chat").registry().default_endpoint()
    ModelEndpoint('bonsai-8b', 'qwen3-8b', is_default=True)
    """

    endpoints: tuple[ModelEndpoint, ...] = ()
    adapters: tuple[LoraAdapter, ...] = ()
    aliases: tuple[tuple[str, ShownTarget], ...] = ()
    default: str | None = None
    unchecked: tuple[str, ...] = ()
    adapter_status: tuple[tuple[str, EndpointStatus], ...] = ()

    def __post_init__(self) -> None:
        for name, kind in (
            ("endpoints", ModelEndpoint),
            ("adapters", LoraAdapter),
            ("aliases", tuple),
            ("unchecked", str),
            ("adapter_status", tuple),
        ):
            items = tuple(getattr(self, name))
            for item in items:
                if not isinstance(item, kind):
                    raise TypeError(f"{name} must hold {kind.__name__} objects, not {short_repr(item)}")
            # A frozen instance accepts values only through ``object.__setattr__()``.
            object.__setattr__(self, name, items)
        for pair in self.adapter_status:
            if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise TypeError(f"adapter_status must hold pairs of str, not {short_repr(pair)}")
        aliases = [_alias(pair) for pair in self.aliases]
        object.__setattr__(self, "aliases", tuple((alias, shown(target)) for alias, target in aliases))
        if not (self.default is None or isinstance(self.default, str)):
            raise TypeError(f"default must be a str or None, not {short_repr(self.default)}")
        unchecked, statuses = set(self.unchecked), {id: EndpointStatus(status) for id, status in self.adapter_status}
        # A dictionary, for its order.
        ids = dict.fromkeys(adapter.id.value for adapter in self.adapters)
        problems = [
            f"{field} has {short_repr(id)}, which is not the id of an adapter"
            for field, named in (("unchecked", self.unchecked), ("adapter_status", statuses))
            for id in named
            if id not in ids
        ]
        # In the order of the adapters, so that equal configurations have equal fields.
        object.__setattr__(self, "unchecked", tuple(id for id in ids if id in unchecked))
        statuses = {id: statuses[id] for id in ids if not statuses.get(id, EndpointStatus.READY).is_available()}
        object.__setattr__(self, "adapter_status", tuple(statuses.items()))
        problems += find_conflicts(self.endpoints, self.adapters, aliases, self.default, unchecked)
        if problems:
            raise ConfigError(problems)

    @classmethod
    def read(cls, path: "str | os.PathLike[str]") -> "RoutingConfig":
        """Return the configuration in the file at *path*. The file name must end in ``.toml`` or ``.json``.

        If there are problems, raises :class:`ConfigError`; each problem begins with *path*, cut if it is long.
        """
        path = os.fsdecode(path)
        try:
            return cls.from_mapping(_load(path), directory=os.path.dirname(path))
        except ConfigError as error:
            raise ConfigError(f"{shorten(path, 200)}: {problem}" for problem in error.problems) from error.__cause__

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, object], *, directory: "str | os.PathLike[str]" = ""
    ) -> "RoutingConfig":
        """Return the configuration in a mapping, such as the result of a TOML, JSON or YAML parser.

        A relative ``peft`` is relative to *directory*; ``""`` means the current directory.
        If there are problems, raises :class:`ConfigError`.
        """
        reader = ConfigReader(os.fsdecode(directory))
        top = reader.table("", mapping, KEYS, required=("schema", "endpoints"))
        reader.schema(top)
        endpoints = [reader.endpoint(path, value) for path, value in reader.array("endpoints", top, required=True)]
        adapters = [reader.adapter(path, value) for path, value in reader.array("adapters", top)]
        aliases = reader.aliases(top)
        default = reader.default(top)
        if reader.problems:
            conflicts = find_conflicts(endpoints, adapters, aliases, default, reader.unchecked, reader.invalid_ids)
            raise ConfigError([*reader.problems, *conflicts])
        # If there are no problems, no endpoint, adapter or target is None.
        pairs = [(alias, shown(target)) for alias, target in aliases if target is not None]
        return cls(endpoints, adapters, pairs, default, tuple(reader.unchecked), reader.adapter_status)  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, object]:
        """Return a new mapping from which :meth:`from_mapping` makes an equal configuration.

        The mapping consists of dictionaries, lists, text and numbers, and in metadata also booleans and ``None``.
        Fields with their default value are left out, except an endpoint's ``max_context_length``.
        An adapter that was read from a PEFT directory is written with its own fields, without ``peft``.
        """
        mapping: dict[str, object] = {"schema": 1}
        if self.default is not None:
            mapping["default"] = self.default
        if self.endpoints:
            mapping["endpoints"] = [
                _to_mapping(each, ModelEndpoint(each.id, each.base_model), ENDPOINT_KEYS, 3) for each in self.endpoints
            ]
        if self.adapters:
            unchecked, statuses = set(self.unchecked), dict(self.adapter_status)
            mapping["adapters"] = [
                _to_mapping(each, LoraAdapter(each.name, each.base_model, each.source), ADAPTER_KEYS, 3)
                | ({"check_base": False} if each.id.value in unchecked else {})
                | ({"status": str(statuses[each.id.value])} if each.id.value in statuses else {})
                for each in self.adapters
            ]
        if self.aliases:
            mapping["aliases"] = {alias: thaw(target) for alias, target in self.aliases}
        return mapping

    def registry(
        self,
        *,
        status: EndpointStatus | str | None = None,
        on_idle: Callable[[Publication], object] | None = None,
    ) -> ModelRegistry:
        """Return a new registry with the endpoints, then the endpoints of the adapters, the aliases and the default.

        What is ready by this configuration gets *status* instead; ``None`` leaves it ready. A server that loads its
        models after it has started passes ``"loading"``.
        *on_idle* is that of the new :class:`ModelRegistry`.
        To update a registry that is in use, pass the new registry to :meth:`ModelRegistry.replace_with`.
        """
        ready = EndpointStatus.READY if status is None else EndpointStatus(status)
        models = ModelRegistry(on_idle=on_idle)
        # No alias has the same name as an id, so a default that is an alias is not an id as well.
        aliases = dict(map(_alias, self.aliases))
        default = None if self.default is None else aliases.get(self.default, self.default)
        for endpoint in self.endpoints:
            if endpoint.status.is_available():
                endpoint = replace(endpoint, status=ready)
            models.register(endpoint.set_default() if endpoint.id.value == default else endpoint)
        store = models._store
        unchecked, statuses = set(self.unchecked), dict(self.adapter_status)
        for adapter in self.adapters:
            id = adapter.id.value
            own = Own(statuses.get(id, ready), None)
            store.run(load_adapter, store, adapter, own, None, id not in unchecked, id == default)
        for alias, target in aliases.items():
            store.run(store.set_alias, alias, target)
        if isinstance(default, Targets):
            store.run(store.set_alias, None, default)
        return models


def _alias(pair: tuple[object, ...]) -> tuple[str, Target]:
    """Return an alias and what it maps to. Raise ``TypeError`` or ``ValueError`` when *pair* is not valid."""
    match pair:
        case (str() as alias, str() | tuple() | list() as targets):
            try:
                return alias, make_target([targets] if isinstance(targets, str) else targets)
            except (TypeError, ValueError) as error:
                raise type(error)(f"aliases has {short_repr(alias)}: {error}") from None
    raise TypeError(f"aliases must hold pairs of a str and a str or a tuple, not {short_repr(pair)}")


def _to_mapping(value: object, plain: object, keys: Sequence[str], required: int) -> dict[str, object]:
    """Return the first *required* fields of *value*, and the other fields that differ from *plain*."""
    fields: dict[str, object] = {}
    for index, key in enumerate(keys):
        field = getattr(value, key)
        if index < required or field != getattr(plain, key):
            fields[key] = str(field) if isinstance(field, (ModelId, EndpointStatus)) else thaw(field)
    return fields


def _load(path: str) -> Mapping[str, object]:
    """Return the parsed content of a file. A JSON file may hold any value, not only a mapping."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _PARSERS:
        raise ConfigError([f"the name must end in {' or '.join(_PARSERS)}"])
    try:
        return _PARSERS[suffix](read_file(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"the file cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"the file is not UTF-8: {error.reason} at byte {error.start}"]) from error
    except ValueError as error:
        raise ConfigError([f"the file is not {suffix[1:].upper()}: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["the file is nested too deeply"]) from error


def _parse_json(text: str) -> Mapping[str, object]:
    # ConfigReader notes a result that is not a mapping.
    return json.loads(text, object_pairs_hook=_json_object, parse_constant=_reject_constant)  # type: ignore[no-any-return]


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object. By itself, ``json`` silently keeps only the last value of a key that is given twice."""
    table = dict(pairs)
    return table if len(table) == len(pairs) else DuplicateKeys(pairs)


def _reject_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")


_PARSERS: Mapping[str, Callable[[str], Mapping[str, object]]] = {".toml": tomllib.loads, ".json": _parse_json}

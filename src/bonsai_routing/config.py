"""Configuration: a file or a mapping in, a registry out, and back.

Reading goes in two steps, and each notes every problem that it meets.
``_Reader`` takes the mapping apart and looks at one value at a time; ``_conflicts`` looks at how they go together.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bonsai_routing.adapter_registry import AdapterRegistry
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import AdapterLoadedError, ModelNotFoundError, RoutingError
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["ConfigError", "RoutingConfig"]

_KEYS = ("schema", "default", "endpoints", "adapters", "aliases")
_ENDPOINT_KEYS = ("id", "base_model", "display_name", "description", "adapter", "max_context_length", "status")
_ADAPTER_KEYS = ("name", "base_model", "source", "rank", "scaling", "description", "max_context_length", "trained_on")

# How many characters of a value, or of a message that quotes one, are shown.
_SHOWN = 200


class ConfigError(RoutingError, ValueError):
    """A configuration cannot be read, or is not sound.

    ``problems`` is all that is wrong, a line of text each: the name of the file if there is one, the key, and the rule.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        # The names of files and directories may hold line breaks.
        lines = tuple(" ".join(problem.splitlines()) for problem in problems)
        super().__init__(lines)
        self.problems = lines

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """What a registry is to hold: endpoints, the adapters on them, aliases, and the default.

    *aliases* are pairs of an alias and the id that it leads to; a tuple, so that the whole is hashable.
    *default* is the id, or an alias, of the default endpoint; ``None`` means none.
    An endpoint that calls itself the default is refused: there is one place to say it.

    Raises :class:`ConfigError` when these do not go together, and ``TypeError`` for an argument of the wrong type.

    >>> endpoint = ModelEndpoint("bonsai-8b", "qwen3-8b")
    >>> RoutingConfig((endpoint,), aliases=(("chat", "bonsai-8b"),), default="chat").registry().default_endpoint()
    ModelEndpoint('bonsai-8b', 'qwen3-8b', is_default=True)
    """

    endpoints: tuple[ModelEndpoint, ...] = ()
    adapters: tuple[LoraAdapter, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    default: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("endpoints", ModelEndpoint), ("adapters", LoraAdapter), ("aliases", tuple)):
            items = tuple(getattr(self, name))
            for item in items:
                if not isinstance(item, kind):
                    raise TypeError(f"{name} must hold {kind.__name__} objects, not {item!r}")
            # A frozen instance can be filled through ``object`` alone.
            object.__setattr__(self, name, items)
        for pair in self.aliases:
            if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise TypeError(f"aliases must hold pairs of str, not {pair!r}")
        if not (self.default is None or isinstance(self.default, str)):
            raise TypeError(f"default must be a str or None, not {self.default!r}")
        problems = _conflicts(self.endpoints, self.adapters, self.aliases, self.default)
        if problems:
            raise ConfigError(problems)

    @classmethod
    def read(cls, path: "str | os.PathLike[str]") -> "RoutingConfig":
        """Return the configuration in a file, whose name ends in ``.toml`` or ``.json``.

        Raises :class:`ConfigError`, and each of its problems begins with *path*.
        """
        path = os.fsdecode(path)
        try:
            return cls.from_mapping(_parsed(path), directory=os.path.dirname(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {problem}" for problem in error.problems) from error.__cause__

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, object], *, directory: "str | os.PathLike[str]" = ""
    ) -> "RoutingConfig":
        """Return the configuration in a mapping, as a parser of TOML, JSON or YAML makes it.

        *directory* is what a relative ``peft`` is relative to; ``""`` means the current directory.
        Raises :class:`ConfigError`.
        """
        reader = _Reader(os.fsdecode(directory))
        top = reader.table("", mapping, _KEYS, required=("schema",))
        reader.schema(top)
        endpoints = [reader.endpoint(path, value) for path, value in reader.array("endpoints", top)]
        adapters = [reader.adapter(path, value) for path, value in reader.array("adapters", top)]
        aliases = reader.aliases(top)
        default = reader.default(top)
        if reader.problems:
            raise ConfigError([*reader.problems, *_conflicts(endpoints, adapters, aliases, default, reader.unsound)])
        # Without problems nothing is left out.
        return cls(endpoints, adapters, aliases, default)  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, object]:
        """Return a new mapping of which :meth:`from_mapping` makes an equal configuration.

        It consists of dictionaries, lists, text and numbers, and leaves out what has its default value.
        An adapter is written as it is, also one that was read from a PEFT directory.
        """
        mapping: dict[str, object] = {"schema": 1}
        if self.default is not None:
            mapping["default"] = self.default
        if self.endpoints:
            mapping["endpoints"] = [
                _written(each, ModelEndpoint(each.id, each.base_model), _ENDPOINT_KEYS, 2) for each in self.endpoints
            ]
        if self.adapters:
            mapping["adapters"] = [
                _written(each, LoraAdapter(each.name, each.base_model, each.source), _ADAPTER_KEYS, 3)
                for each in self.adapters
            ]
        if self.aliases:
            mapping["aliases"] = dict(self.aliases)
        return mapping

    def registry(self) -> ModelRegistry:
        """Return a new registry that holds the endpoints, then those of the adapters, the aliases and the default.

        :meth:`ModelRegistry.replace_with` lets a registry that is in use follow it.
        """
        models = ModelRegistry()
        # No alias is named like an id.
        default = None if self.default is None else dict(self.aliases).get(self.default, self.default)
        for endpoint in self.endpoints:
            models.register(endpoint.set_default() if endpoint.id.value == default else endpoint)
        loaded = AdapterRegistry(models)
        for adapter in self.adapters:
            endpoint = loaded.load(adapter)
            if endpoint.id.value == default:
                # register() would part the adapter from its endpoint.
                with models._ledger.lock:
                    models._publish(endpoint.set_default(), attached=adapter)
        for alias, target in self.aliases:
            models.add_alias(alias, target)
        return models


class _Reader:
    """Takes a mapping apart.

    ``problems`` is what was wrong, and ``unsound`` the ids of the endpoints that something is wrong with.
    What is wrong is left out, and the rest is returned, so that one fault does not look like several.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self.unsound: set[str] = set()

    def refuse(self, path: str, rule: str) -> None:
        self.problems.append(f"{path} {rule}")

    def table(
        self, path: str, value: object, keys: Collection[str], required: Collection[str] = ()
    ) -> dict[str, object]:
        """Return what a table holds under the keys that it may have."""
        if not isinstance(value, Mapping):
            self.refuse(path or "the configuration", f"must be a table, not {_shown(value)}")
            return {}
        self.check_names(path, value)
        for key in value:
            if isinstance(key, str) and key not in keys:
                self.refuse(_joined(path, key), f"is no key here: {_nearest(key, keys)}")
        for key in required:
            if key not in value:
                self.refuse(_joined(path, key), "is missing")
        return {key: item for key, item in value.items() if key in keys}

    def check_names(self, path: str, table: Mapping[object, object]) -> None:
        for key in table:
            if not isinstance(key, str):
                self.refuse(path or "the configuration", f"must have text for keys, not {_shown(key)}")
        if isinstance(table, _Doubled):
            for key in table.keys_given_twice:
                self.refuse(_joined(path, key), "is given twice")

    def array(self, key: str, top: Mapping[str, object]) -> list[tuple[str, object]]:
        """Return the items of an array, each with its path."""
        value = top.get(key, ())
        if not isinstance(value, (list, tuple)):
            self.refuse(key, f"must be an array of tables, in TOML [[{key}]], not {_shown(value)}")
            return []
        return [(f"{key}[{index}]", item) for index, item in enumerate(value)]

    def schema(self, top: Mapping[str, object]) -> None:
        value = top.get("schema", 1)
        if not isinstance(value, int) or isinstance(value, bool) or value != 1:
            self.refuse("schema", f"must be 1, not {_shown(value)}")

    def endpoint(self, path: str, value: object) -> ModelEndpoint | None:
        """Return an endpoint with what is right in a table; ``None`` if its id is not."""
        before = len(self.problems)
        table = self.table(path, value, _ENDPOINT_KEYS, required=("id", "base_model"))
        blank = {"id": "", "base_model": ""}
        fields = self.sound(path, table, ModelEndpoint, blank)
        if "id" not in fields:
            return None
        endpoint = ModelEndpoint(**{**blank, **fields})  # type: ignore[arg-type]
        if len(self.problems) > before:
            self.unsound.add(endpoint.id.value)
        return endpoint

    def adapter(self, path: str, value: object) -> LoraAdapter | None:
        """Return an adapter with what is right in a table; ``None`` if its name or its base is not."""
        from_peft = isinstance(value, Mapping) and "peft" in value
        required = ("base_model",) if from_peft else ("name", "base_model", "source")
        table = self.table(path, value, (*_ADAPTER_KEYS, "peft"), required)
        blank = {"name": "-", "base_model": "", "source": ""}
        peft = table.pop("peft", None)
        fields = self.sound(path, table, LoraAdapter, blank)
        if from_peft:
            fields = {**self.peft(path, peft), **fields}
        if not {"name", "base_model"} <= fields.keys():
            return None
        return LoraAdapter(**{**blank, **fields})  # type: ignore[arg-type]

    def peft(self, path: str, value: object) -> dict[str, object]:
        """Return what a PEFT directory says of its adapter."""
        if not isinstance(value, str):
            self.refuse(f"{path}.peft", f"must be a str, not {_shown(value)}")
            return {}
        directory = os.path.join(self.directory, value)
        try:
            found = LoraAdapter.from_peft(directory, base_model="")
        except (ValueError, OverflowError) as error:
            self.refuse(f"{path}.peft", f"cannot be read: {error}")
            # The adapter's name is known all the same.
            return {"name": os.path.basename(os.path.abspath(directory)) or "-", "source": directory}
        return {key: getattr(found, key) for key in ("name", "source", "rank", "scaling", "trained_on")}

    def sound(
        self, path: str, table: dict[str, object], make: Callable[..., object], blank: Mapping[str, object]
    ) -> dict[str, object]:
        """Return *table* without the values that *make* refuses. *blank* is what it cannot do without."""
        if _complaint(make, {**blank, **table}) is None:
            return table
        sound: dict[str, object] = {}
        for key, value in table.items():
            complaint = _complaint(make, {**blank, key: value})
            if complaint is None:
                sound[key] = value
            elif complaint.startswith(f"{key} "):
                self.problems.append(f"{path}.{complaint}")
            else:
                self.refuse(f"{path}.{key}", f"is refused: {complaint}")
        return sound

    def aliases(self, top: Mapping[str, object]) -> list[tuple[str, str | None]]:
        """Return all aliases; ``None`` for where an alias leads if that is not text."""
        table = top.get("aliases", {})
        if not isinstance(table, Mapping):
            self.refuse("aliases", f"must be a table, not {_shown(table)}")
            return []
        self.check_names("aliases", table)
        aliases: list[tuple[str, str | None]] = []
        for alias, target in table.items():
            if not isinstance(alias, str):
                continue
            if not isinstance(target, str):
                self.refuse(_joined("aliases", alias), f"must be a str, not {_shown(target)}")
            aliases.append((alias, target if isinstance(target, str) else None))
        return aliases

    def default(self, top: Mapping[str, object]) -> str | None:
        value = top.get("default")
        if value is None or isinstance(value, str):
            return value
        self.refuse("default", f"must be a str, not {_shown(value)}")
        return None


def _conflicts(
    endpoints: Sequence[ModelEndpoint | None],
    adapters: Sequence[LoraAdapter | None],
    aliases: Sequence[tuple[str, str | None]],
    default: str | None,
    unsound: Collection[str] = (),
) -> list[str]:
    """Return what keeps these from going together. Those that could not be read are ``None``, to keep their places.

    *unsound* are the ids of endpoints that were read in part, so that no adapter can be tried on them.
    """
    problems: list[str] = []
    # Where each id comes from, and a registry to try the adapters in.
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
        if adapter is not None and adapter.base_model not in unsound:
            rule = _misfit(adapter, models, origins)
            if rule is not None:
                problems.append(f"adapters[{index}]{rule}")
    problems += _lost(aliases, default, origins)
    return problems


def _misfit(adapter: LoraAdapter, models: ModelRegistry, origins: Mapping[str, str]) -> str | None:
    """Return why an adapter cannot be loaded into *models*, from its key on; ``None`` if it has been."""
    base = adapter.base_model
    try:
        AdapterRegistry(models).load(adapter)
    except AdapterLoadedError:
        # That has been noted with the ids.
        return None
    except ModelNotFoundError:
        if base not in origins:
            return f".base_model is {base!r}, which is no id"
        # It is that of an adapter that is not loaded yet.
        return f" does not fit base model {base!r}: that is an adapter's endpoint, not a base"
    except ValueError as error:
        # An AdapterBaseError, unless it was about a number that is too long to be written out.
        return f" does not fit base model {base!r}: {getattr(error, 'rule', error)}"
    return None


def _lost(aliases: Sequence[tuple[str, str | None]], default: str | None, origins: Mapping[str, str]) -> list[str]:
    """Return which aliases lead nowhere or cannot be seen, and whether the default does."""
    problems: list[str] = []
    targets = dict(aliases)
    for alias in _repeated(alias for alias, _ in aliases):
        problems.append(f"{_joined('aliases', alias)} is given twice")
    for alias, target in aliases:
        if alias in origins:
            problems.append(f"{_joined('aliases', alias)} is hidden behind the id of {origins[alias]}")
        if target is not None and target not in origins:
            what = "an alias itself" if target in targets else "no id"
            problems.append(f"{_joined('aliases', alias)} leads to {target!r}, which is {what}")
    if default is not None and default not in origins and default not in targets:
        problems.append(f"default is {default!r}, which is neither an id nor an alias")
    return problems


def _written(value: object, plain: object, keys: Sequence[str], required: int) -> dict[str, object]:
    """Return the fields of *value*: the first ones, as many as are *required*, and those that *plain* has otherwise."""
    fields: dict[str, object] = {}
    for index, key in enumerate(keys):
        field = getattr(value, key)
        if index < required or field != getattr(plain, key):
            fields[key] = str(field) if isinstance(field, (ModelId, EndpointStatus)) else field
    return fields


def _parsed(path: str) -> Mapping[str, object]:
    """Return what a file holds, which need not be a mapping."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _PARSERS:
        raise ConfigError([f"the name must end in {' or '.join(_PARSERS)}"])
    try:
        with open(path, "rb") as file:
            content = file.read()
        return _PARSERS[suffix](content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"the file cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"the file is not UTF-8: {error.reason} at byte {error.start}"]) from error
    except ValueError as error:
        raise ConfigError([f"the file is not {suffix[1:].upper()}: {error}"]) from error
    except RecursionError as error:
        raise ConfigError(["the file is nested too deeply"]) from error


def _toml(text: str) -> Mapping[str, object]:
    # Imported here, as json and difflib are, because most who import the package read no configuration.
    import tomllib

    return tomllib.loads(text)


def _json(text: str) -> Mapping[str, object]:
    import json

    # What comes back may be anything; the reader finds out.
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refused)  # type: ignore[no-any-return]


_PARSERS = {".toml": _toml, ".json": _json}


class _Doubled(dict[str, object]):
    """A JSON object in which keys are given more than once."""

    keys_given_twice: list[str]


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; json itself takes the last of equal keys and says nothing."""
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    doubled = _Doubled(table)
    doubled.keys_given_twice = _repeated(key for key, _ in pairs)
    return doubled


def _repeated(keys: Iterable[str]) -> list[str]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _refused(constant: str) -> object:
    raise ValueError(f"{constant} is not a number of JSON's")


def _complaint(make: Callable[..., object], fields: Mapping[str, object]) -> str | None:
    """Return why *make* refuses these arguments; ``None`` if it takes them."""
    try:
        make(**fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        text = str(error)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return None


def _shown(value: object) -> str:
    """Return a value as a message shows it, however long or deep it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _joined(path: str, key: str) -> str:
    """Return the path of a key in a table, quoted as in TOML if it has to be."""
    if not (key.isascii() and key.replace("-", "").replace("_", "").isalnum()):
        import json

        key = json.dumps(key, ensure_ascii=not key.isprintable())
    return f"{path}.{key}" if path else key


def _nearest(key: str, keys: Collection[str]) -> str:
    """Return which of *keys* may have been meant by *key*."""
    import difflib

    near = difflib.get_close_matches(key, keys, 1)
    return f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(keys)}"

"""Takes a mapping apart and notes every problem.

:class:`ConfigReader` checks each value by itself. ``_config_conflicts.py`` checks whether the values fit together.
"""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from bonsai_routing._checks import key_path, short_repr, shorten
from bonsai_routing._targets import Target, make_target
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.lora import LoraAdapter

__all__ = ["ConfigReader", "DuplicateKeys", "repeated"]

Leaf = TypeVar("Leaf", str, int)

KEYS = ("schema", "default", "endpoints", "adapters", "aliases")
ENDPOINT_KEYS = (
    "id",
    "base_model",
    "max_context_length",
    "display_name",
    "description",
    "adapter",
    "status",
    "metadata",
)
ADAPTER_KEYS = (
    "name",
    "base_model",
    "source",
    "rank",
    "scaling",
    "description",
    "max_context_length",
    "trained_on",
    "metadata",
)


class DuplicateKeys(dict[str, object]):
    """A JSON object that gives a key more than once. The last value of each key wins, as in ``json``."""

    def __init__(self, pairs: Iterable[tuple[str, object]]) -> None:
        pairs = list(pairs)
        super().__init__(pairs)
        self.duplicates = repeated(key for key, _ in pairs)


class ConfigReader:
    """Reads the tables of a mapping, and leaves out what is wrong so that each mistake is reported once.

    ``problems`` holds a line of text for each problem.
    ``invalid_ids`` holds the ids of the endpoints that have a problem.
    ``unchecked`` and ``adapter_status`` hold what the tables of adapters say beyond the adapters.
    A relative ``peft`` is relative to *directory*.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self.invalid_ids: set[str] = set()
        self.unchecked: set[str] = set()
        self.adapter_status: list[tuple[str, EndpointStatus]] = []

    def add_problem(self, path: str, rule: str) -> None:
        """Note that the value at *path* breaks *rule*."""
        self.problems.append(f"{path} {rule}")

    def table(
        self, path: str, value: object, keys: Collection[str], required: Collection[str] = ()
    ) -> dict[str, object]:
        """Return the items of a table whose keys are in *keys*. Note unknown keys and missing keys.

        A missing key that an unknown key resembles is noted with the unknown key only.
        If *value* is not a table, return an empty dictionary.
        """
        if not isinstance(value, Mapping):
            self.add_problem(path or "the configuration", f"must be a table, not {short_repr(value)}")
            return {}
        self.check_keys(path, value)
        suggested: list[str] = []
        for key in value:
            if isinstance(key, str) and key not in keys:
                similar = difflib.get_close_matches(key, keys, 1)
                suggested += similar
                rule = f"did you mean {similar[0]!r}?" if similar else f"the keys are {', '.join(keys)}"
                self.add_problem(key_path(path, key), f"is not a known key; {rule}")
        for key in required:
            if key not in value and key not in suggested:
                self.add_problem(key_path(path, key), "is missing")
        return {key: item for key, item in value.items() if key in keys}

    def check_keys(self, path: str, table: Mapping[object, object]) -> None:
        """Note the keys of a table that are not text, and the keys that are given twice."""
        for key in table:
            if not isinstance(key, str):
                self.add_problem(path or "the configuration", f"must have text for keys, not {short_repr(key)}")
        if isinstance(table, DuplicateKeys):
            for key in table.duplicates:
                self.add_problem(key_path(path, key), "is given twice")

    def array(self, key: str, top: Mapping[str, object], *, required: bool = False) -> list[tuple[str, object]]:
        """Return the path and the value of each item of an array. If it is *required*, it must not be empty."""
        value = top.get(key, ())
        if not isinstance(value, (list, tuple)):
            self.add_problem(key, f"must be an array of tables, in TOML [[{key}]], not {short_repr(value)}")
            return []
        if required and key in top and not value:
            self.add_problem(key, "must have at least one table")
        return [(f"{key}[{index}]", item) for index, item in enumerate(value)]

    def schema(self, top: Mapping[str, object]) -> None:
        """Check the version of the configuration's rules."""
        value = top.get("schema", 1)
        if not isinstance(value, int) or isinstance(value, bool) or value != 1:
            self.add_problem("schema", f"must be 1, not {short_repr(value)}")

    def endpoint(self, path: str, value: object) -> ModelEndpoint | None:
        """Return an endpoint with the valid fields of a table, or ``None`` if the id is invalid."""
        before = len(self.problems)
        table = self.table(path, value, ENDPOINT_KEYS, required=ENDPOINT_KEYS[:3])
        placeholder = {"id": "", "base_model": ""}
        fields = self.valid_fields(path, table, ModelEndpoint, placeholder)
        self.check_metadata(f"{path}.metadata", fields.get("metadata"))
        if "id" not in fields:
            return None
        endpoint = ModelEndpoint(**{**placeholder, **fields})  # type: ignore[arg-type]
        if len(self.problems) > before:
            self.invalid_ids.add(endpoint.id.value)
        return endpoint

    def adapter(self, path: str, value: object) -> LoraAdapter | None:
        """Return an adapter with the valid fields of a table, or ``None`` if the name or the base model is invalid."""
        from_peft = isinstance(value, Mapping) and "peft" in value
        required = ("base_model",) if from_peft else ("name", "base_model", "source")
        table = self.table(path, value, (*ADAPTER_KEYS, "peft", "check_base", "status"), required)
        placeholder = {"name": "-", "base_model": "", "source": ""}
        peft = table.pop("peft", None)
        check_base = table.pop("check_base", True)
        if not isinstance(check_base, bool):
            self.add_problem(f"{path}.check_base", f"must be a bool, not {short_repr(check_base)}")
        status = table.pop("status", EndpointStatus.READY)
        problem = _error_text(EndpointStatus, {"value": status})
        if problem is not None:
            self.problems.append(f"{path}.{problem}")
        fields = self.valid_fields(path, table, LoraAdapter, placeholder)
        self.check_metadata(f"{path}.metadata", fields.get("metadata"))
        if from_peft:
            fields = {**self.peft(path, peft), **fields}
        if not {"name", "base_model"} <= fields.keys():
            return None
        adapter = LoraAdapter(**{**placeholder, **fields})  # type: ignore[arg-type]
        if check_base is False:
            self.unchecked.add(adapter.id.value)
        if problem is None:
            self.adapter_status.append((adapter.id.value, EndpointStatus(status)))  # type: ignore[arg-type]
        return adapter

    def peft(self, path: str, value: object) -> dict[str, object]:
        """Return the fields that a PEFT directory gives to its adapter."""
        if not isinstance(value, str):
            self.add_problem(f"{path}.peft", f"must be a str, not {short_repr(value)}")
            return {}
        directory = os.path.join(self.directory, value)
        try:
            found = LoraAdapter.from_peft(directory, base_model="")
        except (ValueError, OverflowError) as error:
            self.add_problem(f"{path}.peft", f"cannot be read: {error}")
            # The directory's name still gives the adapter's name, so that aliases of the adapter stay valid.
            return {"name": os.path.basename(os.path.abspath(directory)) or "-", "source": directory}
        return {key: getattr(found, key) for key in ("name", "source", "rank", "scaling", "trained_on")}

    def valid_fields(
        self, path: str, table: dict[str, object], make: Callable[..., object], placeholder: Mapping[str, object]
    ) -> dict[str, object]:
        """Return the items of *table* that *make* accepts as arguments, and note the others.

        *placeholder* has a valid value for each argument that *make* requires.
        """
        if _error_text(make, {**placeholder, **table}) is None:
            return table
        valid: dict[str, object] = {}
        for key, value in table.items():
            text = _error_text(make, {**placeholder, key: value})
            if text is None:
                valid[key] = value
            elif text.startswith((f"{key} ", f"{key}.")):
                self.problems.append(f"{path}.{text}")
            else:
                self.add_problem(f"{path}.{key}", f"is refused: {text}")
        return valid

    def check_metadata(self, path: str, value: object) -> None:
        """Note the keys that are given twice in valid metadata, at any depth."""
        if isinstance(value, Mapping):
            self.check_keys(path, value)
            for key, item in value.items():
                self.check_metadata(key_path(path, key), item)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.check_metadata(f"{path}[{index}]", item)

    def aliases(self, top: Mapping[str, object]) -> list[tuple[str, Target | None]]:
        """Return each alias and its target, or ``None`` in place of a target that is not valid."""
        table = top.get("aliases", {})
        if not isinstance(table, Mapping):
            self.add_problem("aliases", f"must be a table, not {short_repr(table)}")
            return []
        self.check_keys("aliases", table)
        aliases: list[tuple[str, Target | None]] = []
        for alias, value in table.items():
            if isinstance(alias, str):
                dotted = self.dotted_keys("aliases", alias, value, str)
                aliases += dotted or [(alias, self.target(key_path("aliases", alias), value))]
        return aliases

    def target(self, path: str, value: object) -> Target | None:
        """Return what an alias maps to, or ``None`` if it is not valid."""
        if isinstance(value, str):
            return value
        if not isinstance(value, (list, tuple)):
            self.add_problem(path, f"must be a str or an array, not {short_repr(value)}")
            return None
        before = len(self.problems)
        for index, tier in enumerate(value):
            if isinstance(tier, Mapping):
                self.check_keys(f"{path}[{index}]", tier)
                for id, weight in tier.items():
                    if isinstance(id, str):
                        self.dotted_keys(f"{path}[{index}]", id, weight, int)
        if len(self.problems) == before:
            try:
                return make_target(value)
            except (TypeError, ValueError) as error:
                self.add_problem(path, f"is refused: {error}")
        return None

    def dotted_keys(self, path: str, key: str, value: object, kind: type[Leaf]) -> list[tuple[str, Leaf]]:
        """Return each value of that kind under the dotted key that TOML reads as the tables around it.

        Note each of these keys.
        """
        items: dict[str, object] = {key: value}
        found: dict[str, Leaf] = {}
        # A name has only a few dots. The limit keeps the work small for tables that are nested very deeply.
        for _ in range(8):
            tables = {name: table for name, table in items.items() if isinstance(table, Mapping)}
            items = {
                f"{name}.{part}": item
                for name, table in tables.items()
                for part, item in table.items()
                if isinstance(part, str)
            }
            found |= {name: item for name, item in items.items() if isinstance(item, kind)}
        for name in found:
            self.add_problem(key_path(path, name), "must be quoted; without quotes, it is a dotted key")
        return list(found.items())

    def default(self, top: Mapping[str, object]) -> str | None:
        """Return the name of the default, or ``None`` if there is none or it is not text."""
        value = top.get("default")
        if value is None or isinstance(value, str):
            return value
        self.add_problem("default", f"must be a str, not {short_repr(value)}")
        return None


def repeated(keys: Iterable[str]) -> list[str]:
    """Return the keys that occur more than once, each of them once."""
    return [key for key, count in Counter(keys).items() if count > 1]


def _error_text(make: Callable[..., object], fields: Mapping[str, object]) -> str | None:
    """Return the text of the error that *make* raises for these arguments, or ``None`` if it raises no error."""
    try:
        make(**fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return shorten(str(error), 200)
    return None

"""Configurations, and checks of their problems, for the tests of configuration."""

import os
import random
import socket
import tomllib
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from bonsai_routing import EndpointStatus, LoraAdapter, ModelEndpoint
from bonsai_routing.config import ConfigError, RoutingConfig

HERE = Path(__file__).parent
PEFT = HERE / "data" / "peft"
EXAMPLE = HERE.parent / "docs" / "examples" / "models.toml"

BASE = ModelEndpoint("base", "qwen3-8b", max_context_length=8192)
CODE = LoraAdapter("code", "base", "adapters/code")
TEXT = """
schema = 1
default = "chat"

[[endpoints]]
id = "base"
base_model = "qwen3-8b"
max_context_length = 8192

[[adapters]]
name = "code"
base_model = "base"
source = "adapters/code"

[aliases]
chat = "base"
"gpt-4o-mini" = "base:code"
"""
CONFIG = RoutingConfig((BASE,), (CODE,), (("chat", "base"), ("gpt-4o-mini", "base:code")), "chat")


def mapping(**changes: object) -> dict[str, object]:
    """Return a valid mapping with *changes*. If *changes* has ``None`` for a key, the key is left out."""
    merged = {**tomllib.loads(TEXT), **changes}
    return {key: value for key, value in merged.items() if value is not None}


def endpoint(**fields: object) -> dict[str, object]:
    return {"id": "a", "base_model": "weights", "max_context_length": 4096, **fields}


def adapter(**fields: object) -> dict[str, object]:
    return {"name": "x", "base_model": "base", "source": "s", **fields}


def problems(read: Callable[[], object]) -> tuple[str, ...]:
    """Return the problems that *read* raises, and check that the error's text has a line for each."""
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return caught.value.problems


def problems_with(**changes: object) -> tuple[str, ...]:
    return problems(lambda: RoutingConfig.from_mapping(mapping(**changes)))


def write_file(folder: Path, content: str | bytes, name: str = "models.toml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


METADATA: list[dict[str, object]] = [
    {},
    {},
    {"": {}, "url": "http://one.internal:8000"},
    {"a": [], "b": [[None, True, -0.5, 2**63 - 1], {"\ud800": "x" * 300}]},
]


def make_socket(path: Path) -> None:
    # The path of a socket must be short.
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


# Make something at a path that is not a regular file. A test that reads it would wait or read for ever.
NOT_FILES: list[Callable[[Path], object]] = [Path.mkdir]
if hasattr(os, "mkfifo"):
    NOT_FILES += [os.mkfifo, make_socket, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("/")]

WORDS = ["", "a", "b", "8b", "a:", "it's", 'say "so"', "line\nbreak", "模型", "\ud800", "x" * 300, "a.b", "#", "chat"]


def random_targets(chance: random.Random, ids: list[str]) -> Any:
    """Return an id, or several targets of an alias."""
    if chance.random() < 0.5:
        return chance.choice(ids)
    return tuple(
        chance.choice([chance.choice(ids), {id: chance.randrange(1, 2**63) for id in ids}])
        for _ in range(chance.randrange(1, 4))
    )


def random_config(chance: random.Random) -> RoutingConfig:
    def word() -> str:
        return chance.choice(WORDS) + chance.choice(["", "", "-", chance.choice(WORDS)])

    def name() -> str:
        return " ".join(word().split()) or "-"

    endpoints: dict[str, ModelEndpoint] = {}
    for _ in range(chance.randrange(1, 5)):
        id = name()
        endpoints[id] = ModelEndpoint(
            id,
            word(),
            display_name=chance.choice([None, word()]),
            description=chance.choice(["", word()]),
            adapter=chance.choice([None, None, word()]),
            max_context_length=chance.choice([0, 1, 4096, 10**9]),
            status=chance.choice(list(EndpointStatus)),
            metadata=chance.choice(METADATA),
        )
    adapters: dict[str, LoraAdapter] = {}
    for base in [each for each in endpoints.values() if each.adapter is None]:
        made = LoraAdapter(
            name(),
            str(base.id),
            word(),
            rank=chance.choice([None, 1, 64]),
            scaling=chance.choice([None, 2, -0.0, 0.1, chance.uniform(-9, 9), 1e300]),
            description=chance.choice(["", word()]),
            max_context_length=chance.choice([None, 0, base.max_context_length]),
            trained_on=chance.choice([None, base.base_model]),
            metadata=chance.choice(METADATA),
        )
        if str(made.id) not in endpoints:
            adapters[str(made.id)] = made
    ids = [*endpoints, *adapters]
    aliases = {name(): random_targets(chance, ids) for _ in range(chance.randrange(4))}
    pairs = [(alias, targets) for alias, targets in aliases.items() if alias not in ids]
    default = chance.choice([None, *ids, *(alias for alias, _ in pairs)])
    return RoutingConfig(tuple(endpoints.values()), tuple(adapters.values()), tuple(pairs), default)

"""What a configuration is written to: a mapping, or a registry."""

import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_helpers import BASE, CODE, CONFIG, TEXT, random_config, write_file

from bonsai_routing import AdapterRegistry, EndpointStatus, LoraAdapter, ModelEndpoint
from bonsai_routing.config import RoutingConfig

# A mapping


@pytest.mark.parametrize("seed", range(200))
def test_a_written_configuration_reads_back_equal(seed: int) -> None:
    config = random_config(random.Random(seed))
    mapping = config.to_mapping()
    assert RoutingConfig.from_mapping(mapping) == config
    assert RoutingConfig.from_mapping(json.loads(json.dumps(mapping))) == config
    assert len(config.registry()) == len(config.endpoints) + len(config.adapters)


@pytest.mark.parametrize("seed", range(20))
def test_a_configuration_written_to_a_file_reads_back_equal(seed: int, tmp_path: Path) -> None:
    config = random_config(random.Random(seed))
    assert RoutingConfig.read(write_file(tmp_path, json.dumps(config.to_mapping()), "models.json")) == config


def test_the_random_configurations_are_of_all_sorts() -> None:
    configs = [random_config(random.Random(seed)) for seed in range(200)]
    assert any(config.adapters and config.aliases and config.default in dict(config.aliases) for config in configs)
    assert any(config.default in [str(each.id) for each in config.adapters] for config in configs)
    assert any(not config.adapters for config in configs)


def test_fields_with_default_values_are_not_written_except_an_endpoints_context() -> None:
    assert CONFIG.to_mapping() == tomllib.loads(TEXT)
    plain = RoutingConfig((ModelEndpoint("base", ""),), (LoraAdapter("x", "base", ""),))
    assert plain.to_mapping() == {
        "schema": 1,
        "endpoints": [{"id": "base", "base_model": "", "max_context_length": 4096}],
        "adapters": [{"name": "x", "base_model": "base", "source": ""}],
    }


def test_a_written_mapping_has_only_plain_types() -> None:
    def plain(value: object) -> Iterator[type]:
        yield type(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from plain(item)

    config = RoutingConfig(
        (replace(BASE, status=EndpointStatus.ERROR, metadata={"tags": ["vision", {"a": EndpointStatus.READY}]}),),
        (replace(CODE, scaling=0.5, metadata={"price": {"eur": 2}}),),
        (("x", "base"),),
    )
    assert set(plain(config.to_mapping())) == {dict, list, str, int, float}


def test_each_written_mapping_is_new() -> None:
    CONFIG.to_mapping()["endpoints"].clear()  # type: ignore[attr-defined]
    CONFIG.to_mapping()["aliases"].clear()  # type: ignore[attr-defined]
    assert RoutingConfig.from_mapping(CONFIG.to_mapping()) == CONFIG


def test_metadata_is_written_as_dictionaries_and_lists() -> None:
    config = RoutingConfig(
        (replace(BASE, metadata={"tags": ("vision",), "price": {"eur": [1, None]}}),),
        (replace(CODE, metadata={"owner": "search"}),),
    )
    written: Any = config.to_mapping()
    assert written["endpoints"][0]["metadata"] == {"tags": ["vision"], "price": {"eur": [1, None]}}
    assert written["adapters"][0]["metadata"] == {"owner": "search"}
    written["endpoints"][0]["metadata"]["price"]["eur"].append(2)
    assert config.endpoints[0].metadata["price"] == {"eur": (1, None)}
    assert RoutingConfig.from_mapping(written).endpoints[0].metadata["price"] == {"eur": (1, None, 2)}


# A registry


def test_a_registry_has_all_of_the_configuration() -> None:
    models = CONFIG.registry()
    assert [str(each.id) for each in models] == ["base", "base:code"]
    assert list(AdapterRegistry(models)) == [CODE]
    assert models.resolve("chat") == models.default_endpoint() == BASE.set_default()
    assert models.resolve("gpt-4o-mini") == ModelEndpoint(
        "base:code", "qwen3-8b", adapter="code", max_context_length=8192
    )
    assert CONFIG.registry() is not models


def test_without_a_default_there_is_none() -> None:
    assert RoutingConfig((BASE,)).registry().default_endpoint() is None


@pytest.mark.parametrize("default", ["base:code", "gpt-4o-mini"])
def test_an_adapter_may_be_the_default(default: str) -> None:
    models = replace(CONFIG, default=default).registry()
    endpoint = models.default_endpoint()
    assert endpoint is not None
    assert str(endpoint.id) == "base:code"
    assert endpoint.is_default
    assert AdapterRegistry(models).get("base:code") == CODE
    assert [str(each.id) for each in models] == ["base", "base:code"]


def test_an_endpoint_starts_with_its_configured_status() -> None:
    models = RoutingConfig((replace(BASE, status=EndpointStatus.DISABLED),)).registry()
    assert models.available_endpoints() == []

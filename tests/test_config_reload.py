"""A registry that is in use and gets a new configuration."""

import json
import random
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from config_helpers import BASE, CODE, CONFIG, TEXT, random_config, write_file
from read_write_helpers import answer

from bonsai_routing import AdapterRegistry, EndpointStatus, ModelEndpoint, ModelRegistry, ModelRouter, RegistryChange
from bonsai_routing.config import ConfigError, RoutingConfig


def changed(change: RegistryChange) -> tuple[str, ...]:
    assert change.added == change.removed == ()
    return change.changed


def test_a_reload_of_the_same_file_changes_nothing(tmp_path: Path) -> None:
    path = write_file(tmp_path, TEXT)
    models = RoutingConfig.read(path).registry()
    models.set_status("base:code", EndpointStatus.LOADING)
    generations = [models.generation(id) for id in ("base", "base:code")]
    with ModelRouter(models).lease("chat"):
        assert models.replace_with(RoutingConfig.read(path).registry()) == RegistryChange((), (), ())
        assert models.in_flight("base") == 1
        assert models.draining() == []
    assert [models.generation(id) for id in ("base", "base:code")] == generations
    assert [each.status for each in models] == ["ready", "loading"]
    assert list(AdapterRegistry(models)) == [CODE]


def test_a_reload_changes_only_what_differs(tmp_path: Path) -> None:
    models = CONFIG.registry()
    adapters = AdapterRegistry(models)
    before = models.generation("base")
    text = TEXT.replace('"code"', '"chat"').replace("base:code", "base:chat")
    with ModelRouter(models).lease("gpt-4o-mini") as lease:
        change = models.replace_with(RoutingConfig.read(write_file(tmp_path, text)).registry())
        assert change == RegistryChange(("base:chat",), ("base:code",), ())
        assert [(each.endpoint, each.generation) for each in models.draining()] == [(lease.endpoint, lease.generation)]
    assert [each.name for each in adapters] == ["chat"]
    assert models.generation("base") == before
    assert str(ModelRouter(models).route("gpt-4o-mini").id) == "base:chat"


def test_an_adapter_from_another_source_is_another_adapter() -> None:
    models = CONFIG.registry()
    adapters = AdapterRegistry(models)
    before = models.generation("base:code")
    newer = replace(CODE, source="adapters/code-2")
    with ModelRouter(models).lease("base:code") as lease:
        assert changed(models.replace_with(replace(CONFIG, adapters=(newer,)).registry())) == ("base:code",)
        assert lease.generation == before
        assert [each.generation for each in models.draining()] == [before]
    assert models.generation("base:code") not in (None, before)
    assert adapters.get("base:code") == newer


def test_other_metadata_makes_another_endpoint() -> None:
    config = replace(CONFIG, endpoints=(replace(BASE, metadata={"url": "http://one"}),))
    models = config.registry()
    before = models.generation("base")
    assert changed(models.replace_with(config.registry())) == ()
    with ModelRouter(models).lease("chat") as lease:
        newer = replace(config, endpoints=(replace(BASE, metadata={"url": "http://two"}),))
        assert changed(models.replace_with(newer.registry())) == ("base",)
        assert lease.endpoint.metadata == {"url": "http://one"}
        assert [each.generation for each in models.draining()] == [before]
    assert ModelRouter(models).route("chat").metadata == {"url": "http://two"}


def test_an_adapter_with_other_metadata_is_another_adapter() -> None:
    models = CONFIG.registry()
    config = replace(CONFIG, adapters=(replace(CODE, metadata={"owner": "search"}),))
    assert changed(models.replace_with(config.registry())) == ("base:code",)
    assert ModelRouter(models).route("base:code").metadata == {"owner": "search"}


def test_other_metadata_of_a_base_changes_only_the_base() -> None:
    adapter = replace(CODE, metadata={"owner": "search"})
    models = replace(CONFIG, adapters=(adapter,)).registry()
    before = models.generation("base:code")
    with ModelRouter(models).lease("base:code"):
        newer = replace(CONFIG, endpoints=(replace(BASE, metadata={"url": "http://two"}),), adapters=(adapter,))
        assert changed(models.replace_with(newer.registry())) == ("base",)
        assert models.in_flight("base:code") == 1
    assert models.generation("base:code") == before
    assert ModelRouter(models).route("base:code").metadata == {"url": "http://two", "owner": "search"}
    assert changed(models.replace_with(newer.registry())) == ()


def test_a_new_default_changes_the_old_and_the_new_default_endpoint() -> None:
    models = replace(CONFIG, endpoints=(BASE, ModelEndpoint("b", "w"), ModelEndpoint("c", "w"))).registry()
    moved = replace(CONFIG, endpoints=(BASE, ModelEndpoint("b", "w"), ModelEndpoint("c", "w")), default="b")
    generations = models.generation("base"), models.generation("b")
    assert changed(models.replace_with(moved.registry())) == ("base", "b")
    assert (models.generation("base"), models.generation("b")) == generations
    assert models.default_endpoint() == ModelEndpoint("b", "w", is_default=True)


def test_a_default_that_is_an_adapter_stays_through_a_reload() -> None:
    config = replace(CONFIG, default="gpt-4o-mini")
    models = config.registry()
    generation = models.generation("base:code")
    assert changed(models.replace_with(config.registry())) == ()
    assert models.generation("base:code") == generation
    assert AdapterRegistry(models).get("base:code") == CODE
    assert changed(models.replace_with(CONFIG.registry())) == ("base", "base:code")


def test_a_broken_file_leaves_the_old_registry_serving(tmp_path: Path) -> None:
    path = write_file(tmp_path, TEXT)
    models = RoutingConfig.read(path).registry()
    write_file(tmp_path, TEXT.replace("adapters", "adapter"))
    with pytest.raises(ConfigError):
        models.replace_with(RoutingConfig.read(path).registry())
    assert ModelRouter(models).route("gpt-4o-mini").adapter == "code"


# Files that are cut, as a reload finds them while another program writes them

THREE = "schema = 1\n" + "".join(
    f'\n[[endpoints]]\nid = "{id}"\nbase_model = "w"\nmax_context_length = 8192\n' for id in "abc"
)


def valid_beginnings(folder: Path, text: str, name: str = "models.toml") -> list[str]:
    """Return each beginning of a file that is read without a problem, and lacks more than white space at the end."""
    found: list[str] = []
    for length in range(len(text.rstrip())):
        path = write_file(folder, text[:length], name)
        with suppress(ConfigError):
            RoutingConfig.read(path)
            found.append(text[:length])
    return found


def test_a_cut_file_is_valid_only_after_a_complete_table_or_in_its_last_number(tmp_path: Path) -> None:
    found = valid_beginnings(tmp_path, THREE)
    assert len(found) == 15
    assert all(re.search(r"max_context_length = 8(1|19|192\s*)?$", each) for each in found)


def test_a_cut_file_is_never_valid_if_its_default_is_its_last_alias(tmp_path: Path) -> None:
    text = THREE.replace("schema = 1\n", 'schema = 1\ndefault = "chat"\n') + '\n[aliases]\nx = "c"\nchat = "a"\n'
    assert RoutingConfig.read(write_file(tmp_path, text)).default == "chat"
    assert valid_beginnings(tmp_path, text) == []


def test_a_cut_json_file_is_never_valid(tmp_path: Path) -> None:
    assert valid_beginnings(tmp_path, json.dumps(CONFIG.to_mapping(), indent=1) + "\n", "models.json") == []


def test_a_reloaded_registry_equals_a_new_registry() -> None:
    """After a reload, names and adapters match the configuration, whatever the registry served before."""
    models = ModelRegistry()
    for seed in range(50):
        config = random_config(random.Random(seed))
        models.replace_with(config.registry())
        fresh = config.registry()
        assert list(models) == list(fresh), seed
        defaults = [answer(ModelRouter(each).candidates, None, key="k") for each in (models, fresh)]
        assert defaults[0] == defaults[1], seed
        assert tuple(AdapterRegistry(models)) == config.adapters, seed
        assert tuple(models.aliases().items()) == config.aliases, seed

import copy
import json
import os
import pickle
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from config_helpers import (
    BASE,
    CODE,
    CONFIG,
    EXAMPLE,
    NOT_FILES,
    TEXT,
    adapter,
    endpoint,
    mapping,
    problems,
    problems_with,
    write_file,
)

from bonsai_routing import (
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelNotReadyError,
    ModelRouter,
    NoModelsAvailableError,
    RoutingError,
    models_response,
)
from bonsai_routing.config import ConfigError, RoutingConfig

# Files and mappings


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    assert RoutingConfig.read(write_file(tmp_path, TEXT)) == CONFIG


def test_a_json_file_is_read(tmp_path: Path) -> None:
    path = write_file(tmp_path, json.dumps(tomllib.loads(TEXT)), "models.json")
    assert RoutingConfig.read(path) == RoutingConfig.read(str(path)) == CONFIG


def test_case_does_not_count_in_a_suffix(tmp_path: Path) -> None:
    assert RoutingConfig.read(write_file(tmp_path, TEXT, "MODELS.TOML")) == CONFIG


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert RoutingConfig.read(write_file(tmp_path, TEXT.encode("utf-8-sig"))) == CONFIG
    content = json.dumps(CONFIG.to_mapping()).encode("utf-8-sig")
    assert RoutingConfig.read(write_file(tmp_path, content, "models.json")) == CONFIG


def test_any_mapping_is_a_table_and_a_tuple_is_an_array() -> None:
    table = MappingProxyType(
        {
            "schema": 1,
            "endpoints": (MappingProxyType({"id": "a", "base_model": "w", "max_context_length": 4096}),),
            "aliases": MappingProxyType({"x": "a"}),
        }
    )
    assert RoutingConfig.from_mapping(table) == RoutingConfig((ModelEndpoint("a", "w"),), aliases=(("x", "a"),))


def test_every_key_reaches_its_field() -> None:
    fields = endpoint(display_name="A", description="d", adapter="l", max_context_length=7, status="disabled")
    more = adapter(rank=4, scaling=0.5, description="e", max_context_length=9, trained_on="Qwen/Qwen3-8B")
    config = RoutingConfig.from_mapping({"schema": 1, "endpoints": [fields, endpoint(id="base")], "adapters": []})
    assert config.endpoints[0] == ModelEndpoint(
        "a",
        "weights",
        display_name="A",
        description="d",
        adapter="l",
        max_context_length=7,
        status=EndpointStatus.DISABLED,
    )
    config = RoutingConfig.from_mapping(mapping(adapters=[more], aliases=None, default="base:x"))
    assert config.adapters == (
        LoraAdapter(
            "x", "base", "s", rank=4, scaling=0.5, description="e", max_context_length=9, trained_on="Qwen/Qwen3-8B"
        ),
    )
    assert config.default == "base:x"


def test_an_empty_configuration_can_be_written_in_python_but_not_read() -> None:
    assert RoutingConfig().registry().is_empty()
    assert problems(lambda: RoutingConfig.from_mapping(RoutingConfig().to_mapping())) == ("endpoints is missing",)
    assert problems(lambda: RoutingConfig.from_mapping({"schema": 1, "endpoints": []})) == (
        "endpoints must have at least one table",
    )


def test_null_is_valid_where_none_has_a_meaning() -> None:
    config = RoutingConfig.from_mapping(
        {
            "schema": 1,
            "default": None,
            "endpoints": [endpoint(id="base", display_name=None, adapter=None)],
            "adapters": [adapter(rank=None, scaling=None, max_context_length=None, trained_on=None)],
        }
    )
    assert config == RoutingConfig((ModelEndpoint("base", "weights"),), (LoraAdapter("x", "base", "s"),))
    assert problems_with(endpoints=[endpoint(description=None)], adapters=None, aliases=None, default=None) == (
        "endpoints[0].description must be a str, not None",
    )


def test_the_example_of_the_documentation_is_valid() -> None:
    config = RoutingConfig.read(EXAMPLE)
    models = config.registry()
    assert (len(config.endpoints), len(config.adapters), len(config.aliases)) == (2, 3, 2)
    assert models.default_endpoint() == models.resolve("bonsai-8b") == models.resolve(str(config.default))
    assert ModelRouter(models).route("gpt-4o-mini").adapter == "code"


# Files with problems


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("m.toml", "schema = ", "the file is not TOML: "),
        ("m.toml", "schema = 1\nschema = 1", "the file is not TOML: "),
        ("m.toml", "schema = 1\r", "the file is not TOML: "),
        ("m.toml", "schema = 1" + "0" * 5000, "the file is not TOML: "),
        ("m.toml", b"schema = 1 # \xff", "the file is not UTF-8: invalid start byte at byte 13"),
        ("m.toml", "schema = 1".encode("utf-16"), "the file is not UTF-8: "),
        ("m.toml", "schema = " + "[" * 10**5, "the file is nested too deeply"),
        ("m.json", "{", "the file is not JSON: "),
        ("m.json", "", "the file is not JSON: "),
        ("m.json", '{"schema": 1,}', "the file is not JSON: "),
        ("m.json", '{"schema": 1} x', "the file is not JSON: "),
        ("m.json", "[" * 10**6, "the file is nested too deeply"),
        ("m.json", "[]", "the configuration must be a table, not []"),
        ("m.json", '{"schema": NaN}', "the file is not JSON: NaN is not a JSON number"),
        ("m.json", '{"schema": -Infinity}', "the file is not JSON: -Infinity is not a JSON number"),
        ("m.json", b'{"schema": 1, "default": "\xff"}', "the file is not UTF-8: "),
        ("m.yaml", "schema: 1", "the name must end in .toml or .json"),
        ("toml", "schema = 1", "the name must end in .toml or .json"),
    ],
)
def test_a_broken_file_is_one_problem_with_its_name(tmp_path: Path, name: str, content: str | bytes, rule: str) -> None:
    path = write_file(tmp_path, content, name)
    (problem,) = problems(lambda: RoutingConfig.read(path))
    assert problem.startswith(f"{path}: {rule}")
    assert len(problem) < len(str(path)) + 200


def test_an_empty_file_is_not_an_empty_configuration(tmp_path: Path) -> None:
    path = write_file(tmp_path, "")
    assert problems(lambda: RoutingConfig.read(path)) == (
        f"{path}: schema is missing",
        f"{path}: endpoints is missing",
    )


def test_a_file_that_cannot_be_opened_is_one_problem(tmp_path: Path) -> None:
    for name in ("gone.toml", "gone/gone.toml"):
        (problem,) = problems(lambda name=name: RoutingConfig.read(tmp_path / name))  # type: ignore[misc]
        assert problem.startswith(f"{tmp_path / name}: the file cannot be read: ")


def test_a_path_that_holds_nul_is_called_that() -> None:
    assert problems(lambda: RoutingConfig.read("a\0b.toml")) == (
        "a\\x00b.toml: the file cannot be read: the path holds a NUL character",
    )


@pytest.mark.parametrize("make", NOT_FILES)
def test_what_is_not_a_regular_file_is_called_that_and_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "m.toml"
    make(path)
    assert problems(lambda: RoutingConfig.read(path)) == (f"{path}: the file cannot be read: it is not a regular file",)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read any file")
def test_a_file_that_may_not_be_read_is_still_a_file(tmp_path: Path) -> None:
    path = write_file(tmp_path, TEXT)
    path.chmod(0)
    assert problems(lambda: RoutingConfig.read(path)) == (f"{path}: the file cannot be read: Permission denied",)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    write_file(tmp_path, TEXT, "there.toml")
    (tmp_path / "m.toml").symlink_to("there.toml")
    assert RoutingConfig.read(tmp_path / "m.toml") == CONFIG


def test_the_error_of_the_system_is_the_cause(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        RoutingConfig.read(tmp_path / "gone.toml")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_each_problem_in_a_file_has_its_name(tmp_path: Path) -> None:
    path = write_file(tmp_path, TEXT.replace("schema = 1", "schema = 2\nx = 3"))
    assert problems(lambda: RoutingConfig.read(path)) == (
        f"{path}: x is not a known key; the keys are schema, default, endpoints, adapters, aliases",
        f"{path}: schema must be 1, not 2",
    )


def test_what_cannot_be_printed_is_escaped() -> None:
    (problem,) = problems(lambda: RoutingConfig.read("\x1b[2J\udcffno\nsuch.toml"))
    assert problem.startswith("\\x1b[2J\\udcffno\\nsuch.toml: the file cannot be read: ")
    assert ConfigError(["a\tb\u2028 is \U0001f333"]).problems == ("a\\tb\\u2028 is \U0001f333",)


def test_a_long_path_is_cut_in_the_middle() -> None:
    (problem,) = problems(lambda: RoutingConfig.read("x" * 3000 + ".toml"))
    assert problem.startswith("x" * 100 + "...x")
    assert ".toml: the file cannot be read: " in problem
    assert len(problem) <= 503


def test_a_key_that_json_gives_twice_is_a_problem_wherever_it_is(tmp_path: Path) -> None:
    content = """{"schema": 1, "schema": 1, "default": "a", "endpoints": [
        {"id": "b", "base_model": "w", "max_context_length": 1},
        {"id": "z", "base_model": "w", "id": "a", "id": "a", "max_context_length": 1}],
        "aliases": {"a b": "a", "x": "a", "a b": "b"}}"""
    path = write_file(tmp_path, content, "models.json")
    assert problems(lambda: RoutingConfig.read(path)) == (
        f"{path}: schema is given twice",
        f"{path}: endpoints[1].id is given twice",
        f'{path}: aliases."a b" is given twice',
    )


# The value


def test_a_configuration_is_a_value() -> None:
    twin = RoutingConfig.from_mapping(mapping())
    assert twin == CONFIG
    assert hash(twin) == hash(CONFIG)
    assert copy.copy(CONFIG) == copy.deepcopy(CONFIG) == pickle.loads(pickle.dumps(CONFIG)) == CONFIG
    with pytest.raises(AttributeError):
        CONFIG.default = None  # type: ignore[misc]


def test_lists_become_tuples() -> None:
    config = RoutingConfig([BASE], [CODE], [("chat", "base")])  # type: ignore[arg-type]
    assert config == RoutingConfig((BASE,), (CODE,), (("chat", "base"),))
    assert isinstance(hash(config), int)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoints": ["base"]}, "endpoints must hold ModelEndpoint objects, not 'base'"),
        ({"adapters": [BASE]}, "adapters must hold LoraAdapter objects"),
        ({"aliases": ["ab"]}, "aliases must hold tuple objects, not 'ab'"),
        ({"aliases": [("a",)]}, "aliases must hold pairs of a str and a str or a tuple, not ('a',)"),
        ({"aliases": [("a", 1)]}, "aliases must hold pairs of a str and a str or a tuple, not ('a', 1)"),
        ({"aliases": [("a", ({"b": True},))]}, "aliases has 'a': the weight of 'b' must be an int, not True"),
        ({"default": 1}, "default must be a str or None, not 1"),
        ({"endpoints": ["x" * 10**6]}, f"endpoints must hold ModelEndpoint objects, not '{'x' * 59}...{'x' * 59}'"),
    ],
)
def test_an_argument_of_the_wrong_type_raises_a_type_error(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        RoutingConfig(**fields)  # type: ignore[arg-type]


# The error


def test_a_copy_of_an_error_has_the_same_problems() -> None:
    error = ConfigError(["a is wrong", "b too"])
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is ConfigError
        assert twin.problems == error.problems == ("a is wrong", "b too")
        assert str(twin) == "a is wrong\nb too"
        assert twin.args == (twin.problems,)


def test_a_config_error_is_a_routing_error_and_a_value_error() -> None:
    assert issubclass(ConfigError, RoutingError)
    assert issubclass(ConfigError, ValueError)


def test_a_default_may_be_an_alias_with_several_targets() -> None:
    small, large = (ModelEndpoint(id, "w", max_context_length=size) for id, size in (("small", 8), ("large", 64)))
    loading = ModelEndpoint("loading", "w", max_context_length=32, status="loading")
    for targets in (("loading", "small"), ({"loading": 1, "small": 99},)):
        config = RoutingConfig((small, large, loading), aliases=(("chat", targets),), default="chat")
        router = ModelRouter(config.registry())
        assert router.route() == router.route("chat") == router.registry.default_endpoint() == small
        assert router.route_for_context(None, 9) == large
        body: Any = models_response(router, aliases=True)
        assert [card["id"] for card in body["data"]] == ["small", "large", "chat"]
        router.registry.set_status("loading", "ready")
        assert router.route_for_context(None, 9).id == "loading"
        router.registry.set_status("small", "error")
        assert router.route().id == "loading"
        router.registry.unregister("loading")
        with pytest.raises(ModelNotReadyError):
            router.route()
        router.registry.unregister("small")
        with pytest.raises(NoModelsAvailableError):
            router.route_for_context(None, 1)
        assert RoutingConfig.from_mapping(config.to_mapping()) == config

import copy
import json
import math
import pickle
import random
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

import bonsai_routing
from bonsai_routing import (
    AdapterRegistry,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelRegistry,
    ModelRouter,
    RegistryChange,
    RoutingError,
)
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
    """Return a sound mapping, with some of its keys changed, or left out where *changes* has ``None``."""
    merged = {**tomllib.loads(TEXT), **changes}
    return {key: value for key, value in merged.items() if value is not None}


def endpoint(**fields: object) -> dict[str, object]:
    return {"id": "a", "base_model": "weights", **fields}


def adapter(**fields: object) -> dict[str, object]:
    return {"name": "x", "base_model": "base", "source": "s", **fields}


def problems(read: Callable[[], object]) -> tuple[str, ...]:
    """Return the problems of a configuration, which all have a line of the error's text."""
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).splitlines() == list(caught.value.problems)
    return caught.value.problems


def complaints(**changes: object) -> tuple[str, ...]:
    return problems(lambda: RoutingConfig.from_mapping(mapping(**changes)))


def written(folder: Path, content: str | bytes, name: str = "models.toml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Reading


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    assert RoutingConfig.read(written(tmp_path, TEXT)) == CONFIG


def test_a_json_file_says_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(tomllib.loads(TEXT)), "models.json")
    assert RoutingConfig.read(path) == RoutingConfig.read(str(path)) == CONFIG


def test_case_does_not_count_in_a_suffix(tmp_path: Path) -> None:
    assert RoutingConfig.read(written(tmp_path, TEXT, "MODELS.TOML")) == CONFIG


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    assert RoutingConfig.read(written(tmp_path, TEXT.encode("utf-8-sig"))) == CONFIG
    content = json.dumps(CONFIG.to_mapping()).encode("utf-8-sig")
    assert RoutingConfig.read(written(tmp_path, content, "models.json")) == CONFIG


def test_any_mapping_will_do_and_tuples_are_arrays() -> None:
    table = MappingProxyType(
        {
            "schema": 1,
            "endpoints": (MappingProxyType({"id": "a", "base_model": "w"}),),
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


def test_the_schema_alone_is_an_empty_configuration() -> None:
    config = RoutingConfig.from_mapping({"schema": 1})
    assert config == RoutingConfig()
    assert config.registry().is_empty()
    assert config.to_mapping() == {"schema": 1}


def test_null_is_taken_where_none_means_something() -> None:
    config = RoutingConfig.from_mapping(
        {
            "schema": 1,
            "default": None,
            "endpoints": [endpoint(id="base", display_name=None, adapter=None)],
            "adapters": [adapter(rank=None, scaling=None, max_context_length=None, trained_on=None)],
        }
    )
    assert config == RoutingConfig((ModelEndpoint("base", "weights"),), (LoraAdapter("x", "base", "s"),))
    assert complaints(endpoints=[endpoint(description=None)], adapters=None, aliases=None, default=None) == (
        "endpoints[0].description must be a str, not None",
    )


def test_the_example_of_the_documentation_is_sound() -> None:
    config = RoutingConfig.read(EXAMPLE)
    models = config.registry()
    assert (len(config.endpoints), len(config.adapters), len(config.aliases)) == (2, 3, 2)
    assert models.default_endpoint() == models.resolve("bonsai-8b") == models.resolve(str(config.default))
    assert ModelRouter(models).route("gpt-4o-mini").adapter == "code"


# PEFT directories


def peft_config(**fields: object) -> RoutingConfig:
    table = {"base_model": "base", **fields}
    return RoutingConfig.from_mapping(mapping(adapters=[table], aliases=None, default=None), directory=PEFT)


def test_a_peft_directory_says_what_its_adapter_is() -> None:
    assert peft_config(peft="code").adapters == (LoraAdapter.from_peft(PEFT / "code", base_model="base"),)
    (rank_stabilised,) = peft_config(peft="chat-rslora").adapters
    assert (rank_stabilised.name, rank_stabilised.rank, rank_stabilised.scaling) == ("chat-rslora", 16, 8.0)
    assert peft_config(peft="law-rank-pattern").adapters[0].rank == 32


def test_a_key_beside_peft_wins_over_the_directory() -> None:
    fields = adapter(rank=1, scaling=3.0, description="d", max_context_length=5, trained_on="qwen3-8b")
    assert peft_config(peft="code", **fields).adapters == (
        LoraAdapter(
            "x", "base", "s", rank=1, scaling=3.0, description="d", max_context_length=5, trained_on="qwen3-8b"
        ),
    )
    assert peft_config(peft="code", trained_on=None).adapters[0].trained_on is None


def test_a_peft_directory_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "conf"
    (conf / "code").mkdir(parents=True)
    (conf / "code" / "adapter_config.json").write_bytes((PEFT / "code" / "adapter_config.json").read_bytes())
    text = TEXT.replace('name = "code"\n', "").replace('source = "adapters/code"', 'peft = "code"')
    path = written(conf, text)
    assert RoutingConfig.read(path).adapters[0].source == str(conf / "code")
    monkeypatch.chdir(tmp_path)
    assert RoutingConfig.read("conf/models.toml").adapters[0].source == str(Path("conf", "code"))
    monkeypatch.chdir(conf)
    assert RoutingConfig.read("models.toml").adapters[0].source == "code"
    assert RoutingConfig.from_mapping(tomllib.loads(text)).adapters[0].source == "code"


def test_an_absolute_peft_directory_stays_what_it_is(tmp_path: Path) -> None:
    fields: dict[str, object] = {"base_model": "base", "peft": str(PEFT / "code")}
    config = RoutingConfig.from_mapping(mapping(adapters=[fields]), directory=tmp_path)
    assert config.adapters[0].source == str(PEFT / "code")


def test_an_adapter_from_a_peft_directory_is_written_without_it() -> None:
    config = peft_config(peft="code")
    assert config.to_mapping()["adapters"] == [
        {
            "name": "code",
            "base_model": "base",
            "source": str(PEFT / "code"),
            "rank": 8,
            "scaling": 2.0,
            "trained_on": "qwen3-8b",
        }
    ]
    assert RoutingConfig.from_mapping(config.to_mapping()) == config


def test_a_peft_directory_that_cannot_be_read_is_the_only_problem() -> None:
    def read(peft: object) -> tuple[str, ...]:
        table: dict[str, object] = {"base_model": "base", "peft": peft}
        aliases = {"x": f"base:{peft}"}
        return problems(
            lambda: RoutingConfig.from_mapping(mapping(adapters=[table], aliases=aliases, default="x"), directory=PEFT)
        )

    ia3 = PEFT / "ia3" / "adapter_config.json"
    assert read("ia3") == (f"adapters[0].peft cannot be read: {ia3}: peft_type must be 'LORA', not 'IA3'",)
    gone = PEFT / "gone" / "adapter_config.json"
    assert read("gone") == (f"adapters[0].peft cannot be read: {gone}: the file does not exist",)
    assert len(read("go\nne")) == 1


def test_a_peft_directory_without_a_name_gives_none() -> None:
    table = {"base_model": "base", "peft": "/"}
    (problem,) = complaints(adapters=[table], aliases=None, default=None)
    assert problem.startswith("adapters[0].peft cannot be read: ")


def test_a_number_too_large_for_peft_is_a_problem_of_its_directory(tmp_path: Path) -> None:
    config = json.loads((PEFT / "code" / "adapter_config.json").read_bytes())
    written(tmp_path, json.dumps({**config, "lora_alpha": 10**400}), "adapter_config.json")
    (problem,) = complaints(adapters=[{"base_model": "base", "peft": str(tmp_path)}], aliases=None, default=None)
    assert problem.startswith("adapters[0].peft cannot be read: ")


# Writing

WORDS = ["", "a", "b", "8b", "a:", "it's", 'say "so"', "line\nbreak", "模型", "\ud800", "x" * 300, "a.b", "#", "chat"]


def random_config(chance: random.Random) -> RoutingConfig:
    def word() -> str:
        return chance.choice(WORDS) + chance.choice(["", "", "-", chance.choice(WORDS)])

    endpoints: dict[str, ModelEndpoint] = {}
    for _ in range(chance.randrange(5)):
        id = word()
        endpoints[id] = ModelEndpoint(
            id,
            word(),
            display_name=chance.choice([None, word()]),
            description=chance.choice(["", word()]),
            adapter=chance.choice([None, None, word()]),
            max_context_length=chance.choice([0, 1, 4096, 10**9]),
            status=chance.choice(list(EndpointStatus)),
        )
    adapters: dict[str, LoraAdapter] = {}
    for base in [each for each in endpoints.values() if each.adapter is None]:
        made = LoraAdapter(
            word() or "-",
            str(base.id),
            word(),
            rank=chance.choice([None, 1, 64]),
            scaling=chance.choice([None, 2, -0.0, 0.1, chance.uniform(-9, 9), 1e300]),
            description=chance.choice(["", word()]),
            max_context_length=chance.choice([None, 0, base.max_context_length]),
            trained_on=chance.choice([None, base.base_model]),
        )
        if str(made.id) not in endpoints:
            adapters[str(made.id)] = made
    ids = [*endpoints, *adapters]
    aliases = {word(): chance.choice(ids) for _ in range(chance.randrange(4)) if ids}
    pairs = [(alias, id) for alias, id in aliases.items() if alias not in ids]
    default = chance.choice([None, *ids, *(alias for alias, _ in pairs)])
    return RoutingConfig(tuple(endpoints.values()), tuple(adapters.values()), tuple(pairs), default)


@pytest.mark.parametrize("seed", range(200))
def test_what_is_written_reads_back_equal(seed: int) -> None:
    config = random_config(random.Random(seed))
    mapping = config.to_mapping()
    assert RoutingConfig.from_mapping(mapping) == config
    assert RoutingConfig.from_mapping(json.loads(json.dumps(mapping))) == config
    assert len(config.registry()) == len(config.endpoints) + len(config.adapters)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_to_a_file_reads_back_equal(seed: int, tmp_path: Path) -> None:
    config = random_config(random.Random(seed))
    assert RoutingConfig.read(written(tmp_path, json.dumps(config.to_mapping()), "models.json")) == config


def test_the_random_configurations_are_of_all_sorts() -> None:
    configs = [random_config(random.Random(seed)) for seed in range(200)]
    assert any(config.adapters and config.aliases and config.default in dict(config.aliases) for config in configs)
    assert any(config.default in [str(each.id) for each in config.adapters] for config in configs)
    assert any(not config.endpoints for config in configs)


def test_what_has_its_default_value_is_not_written() -> None:
    assert CONFIG.to_mapping() == tomllib.loads(TEXT)
    plain = RoutingConfig((ModelEndpoint("", ""),), (LoraAdapter("x", "", ""),))
    assert plain.to_mapping() == {
        "schema": 1,
        "endpoints": [{"id": "", "base_model": ""}],
        "adapters": [{"name": "x", "base_model": "", "source": ""}],
    }


def test_what_is_written_is_plain() -> None:
    def plain(value: object) -> Iterator[type]:
        yield type(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from plain(item)

    config = RoutingConfig(
        (replace(BASE, status=EndpointStatus.ERROR),), (replace(CODE, scaling=0.5),), (("x", "base"),)
    )
    assert set(plain(config.to_mapping())) == {dict, list, str, int, float}


def test_what_is_written_is_nobody_elses() -> None:
    CONFIG.to_mapping()["endpoints"].clear()  # type: ignore[attr-defined]
    CONFIG.to_mapping()["aliases"].clear()  # type: ignore[attr-defined]
    assert RoutingConfig.from_mapping(CONFIG.to_mapping()) == CONFIG


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
        ({"aliases": [("a",)]}, "aliases must hold pairs of str, not ('a',)"),
        ({"aliases": [("a", 1)]}, "aliases must hold pairs of str, not ('a', 1)"),
        ({"default": 1}, "default must be a str or None, not 1"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        RoutingConfig(**fields)  # type: ignore[arg-type]


def test_no_configuration_exists_that_is_not_sound() -> None:
    assert problems(lambda: RoutingConfig((BASE, BASE), (CODE, CODE), (("x", "y"), ("x", "base")), "z")) == (
        "endpoints[1].id is 'base', which is the id of endpoints[0]",
        "adapters[1].name makes the id 'base:code', which is the id of adapters[0]",
        "aliases.x is given twice",
        "aliases.x leads to 'y', which is no id",
        "default is 'z', which is neither an id nor an alias",
    )


def test_an_endpoint_may_not_call_itself_the_default() -> None:
    assert problems(lambda: RoutingConfig((BASE.set_default(),))) == (
        "endpoints[0].is_default must be False: the default is named by the key default",
    )


# Problems: one value


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"id": 5}, ".id must be a ModelId or a str, not 5"),
        ({"base_model": 5}, ".base_model must be a str, not 5"),
        ({"display_name": 5}, ".display_name must be a str, not 5"),
        ({"description": ["d"]}, ".description must be a str, not ['d']"),
        ({"adapter": False}, ".adapter must be a str or None, not False"),
        ({"max_context_length": True}, ".max_context_length must be an int, not True"),
        ({"max_context_length": 8192.0}, ".max_context_length must be an int, not 8192.0"),
        ({"max_context_length": "8k"}, ".max_context_length must be an int, not '8k'"),
        ({"max_context_length": -1}, ".max_context_length must be 0 tokens or more, not -1"),
        ({"status": "redy"}, ".status must be one of 'ready', 'loading', 'error', 'disabled', not 'redy'"),
        ({"status": {}}, ".status must be one of 'ready', 'loading', 'error', 'disabled', not {}"),
    ],
)
def test_a_wrong_value_of_an_endpoint_is_named(fields: dict[str, object], problem: str) -> None:
    assert complaints(endpoints=[endpoint(id="base"), endpoint(**fields)]) == (f"endpoints[1]{problem}",)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": 5}, ".name must be a str, not 5"),
        ({"name": ""}, ".name must not be empty"),
        ({"base_model": 5}, ".base_model must be a str, not 5"),
        ({"source": None}, ".source must be a str, not None"),
        ({"peft": 5}, ".peft must be a str, not 5"),
        ({"peft": None}, ".peft must be a str, not None"),
        ({"rank": 0}, ".rank must be an int of 1 or more, not 0"),
        ({"rank": True}, ".rank must be an int of 1 or more, not True"),
        ({"scaling": math.nan}, ".scaling must be a finite number, not nan"),
        ({"scaling": "2"}, ".scaling must be a finite number, not '2'"),
        ({"description": 5}, ".description must be a str, not 5"),
        ({"max_context_length": True}, ".max_context_length must be an int, not True"),
        ({"trained_on": 5}, ".trained_on must be a str or None, not 5"),
    ],
)
def test_a_wrong_value_of_an_adapter_is_named(fields: dict[str, object], problem: str) -> None:
    wanted = complaints(adapters=[adapter(name="code"), adapter(**fields)])
    assert wanted == (f"adapters[1]{problem}",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 2}, "schema must be 1, not 2"),
        ({"schema": True}, "schema must be 1, not True"),
        ({"schema": 1.0}, "schema must be 1, not 1.0"),
        ({"schema": "1"}, "schema must be 1, not '1'"),
        ({"schema": None}, "schema is missing"),
        ({"default": ["chat"]}, "default must be a str, not ['chat']"),
        ({"aliases": {"chat": "base", "x": True}}, "aliases.x must be a str, not True"),
        ({"aliases": {"chat": "base", 8: "base"}}, "aliases must have text for keys, not 8"),
        ({"endpoints": [endpoint(id="base"), "x"]}, "endpoints[1] must be a table, not 'x'"),
        ({"adapters": [adapter(name="code"), None]}, "adapters[1] must be a table, not None"),
        (
            {"adapters": {}, "aliases": None, "default": None},
            "adapters must be an array of tables, in TOML [[adapters]], not {}",
        ),
        ({"aliases": [], "default": None}, "aliases must be a table, not []"),
    ],
)
def test_a_wrong_value_anywhere_else_is_named(changes: dict[str, object], problem: str) -> None:
    assert complaints(**changes) == (problem,)


def test_a_key_is_text() -> None:
    table: dict[object, object] = {"schema": 1, 8: "base", None: "base"}
    assert problems(lambda: RoutingConfig.from_mapping(table)) == (  # type: ignore[arg-type]
        "the configuration must have text for keys, not 8",
        "the configuration must have text for keys, not None",
    )


@pytest.mark.parametrize("value", [None, [], "schema = 1", 1])
def test_what_is_no_table_is_refused_as_a_whole(value: object) -> None:
    read = problems(lambda: RoutingConfig.from_mapping(value))  # type: ignore[arg-type]
    assert read == (f"the configuration must be a table, not {value!r}",)


@pytest.mark.parametrize("key", ["id", "base_model"])
def test_an_endpoint_needs_an_id_and_weights(key: str) -> None:
    table = endpoint(id="b")
    del table[key]
    assert complaints(endpoints=[endpoint(id="base"), table]) == (f"endpoints[1].{key} is missing",)


@pytest.mark.parametrize("key", ["name", "base_model", "source"])
def test_an_adapter_needs_a_name_a_base_and_a_source(key: str) -> None:
    table = adapter()
    del table[key]
    assert complaints(adapters=[adapter(name="code"), table]) == (f"adapters[1].{key} is missing",)


def test_an_adapter_from_a_peft_directory_needs_a_base() -> None:
    table = {"peft": str(PEFT / "code")}
    assert complaints(adapters=[adapter(name="code"), table]) == ("adapters[1].base_model is missing",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"defualt": "base"}, "defualt is no key here: did you mean 'default'?"),
        (
            {"endpoints": [endpoint(id="base", maxContextLength=5)]},
            "endpoints[0].maxContextLength is no key here: did you mean 'max_context_length'?",
        ),
        (
            {"adapters": [adapter(name="code", sclaing=5)]},
            "adapters[0].sclaing is no key here: did you mean 'scaling'?",
        ),
        ({"adapters": [adapter(name="code", pef=".")]}, "adapters[0].pef is no key here: did you mean 'peft'?"),
        ({"a b": 1}, '"a b" is no key here: the keys are schema, default, endpoints, adapters, aliases'),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(changes: dict[str, object], problem: str) -> None:
    assert complaints(**changes) == (problem,)


def test_an_endpoint_has_no_key_for_being_the_default() -> None:
    (problem,) = complaints(endpoints=[endpoint(id="base", is_default=True)])
    assert problem.startswith("endpoints[0].is_default is no key here: the keys are id, base_model,")


@pytest.mark.parametrize(
    ("alias", "path"),
    [
        ("a-b_8", "aliases.a-b_8"),
        ("gpt-4.1", 'aliases."gpt-4.1"'),
        ("", 'aliases.""'),
        ('"', 'aliases."\\""'),
        ("模型", 'aliases."模型"'),
        ("a\nb", 'aliases."a\\nb"'),
        ("\ud800\u2028", 'aliases."\\ud800\\u2028"'),
    ],
)
def test_a_key_is_quoted_where_toml_would_have_it_so(alias: str, path: str) -> None:
    assert complaints(aliases={alias: "gone"}, default=None) == (f"{path} leads to 'gone', which is no id",)


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [0] * 10**6, nested(10**5), 1 << 10**5], ids=["long", "many", "deep", "large"]
)
def test_a_huge_value_makes_no_huge_problem(value: object) -> None:
    tables = [endpoint(id="base"), endpoint(id=value) if not isinstance(value, str) else endpoint(status=value)]
    found = complaints(schema=value, endpoints=tables)
    assert [problem.partition(" ")[0] for problem in found] == [
        "schema",
        f"endpoints[1].{'status' if isinstance(value, str) else 'id'}",
    ]
    assert all(len(problem) < 300 for problem in found)


def test_a_number_too_large_for_a_float_is_a_problem() -> None:
    (problem,) = complaints(adapters=[adapter(name="code", scaling=10**400)])
    assert problem.startswith("adapters[0].scaling ")


def test_a_context_too_long_to_be_written_out_does_not_fit() -> None:
    (problem,) = complaints(adapters=[adapter(name="code", max_context_length=1 << 10**5)])
    assert problem.startswith("adapters[0] does not fit base model 'base': ")


# Problems: how things go together


def test_an_id_is_given_once() -> None:
    tables = [endpoint(id="base"), endpoint(id="base"), endpoint(id="base:code")]
    assert complaints(endpoints=tables, adapters=[adapter(name="code")]) == (
        "endpoints[1].id is 'base', which is the id of endpoints[0]",
        "adapters[0].name makes the id 'base:code', which is the id of endpoints[2]",
    )


def test_two_adapters_of_one_base_have_two_names() -> None:
    assert complaints(adapters=[adapter(name="code"), adapter(name="code")]) == (
        "adapters[1].name makes the id 'base:code', which is the id of adapters[0]",
    )


def test_an_adapter_needs_its_base() -> None:
    assert complaints(adapters=[adapter(name="code"), adapter(base_model="gone")]) == (
        "adapters[1].base_model is 'gone', which is no id",
    )


def test_an_alias_is_no_base() -> None:
    assert complaints(adapters=[adapter(name="code"), adapter(base_model="chat")]) == (
        "adapters[1].base_model is 'chat', which is no id",
    )


def test_an_adapter_goes_on_a_base_wherever_that_stands() -> None:
    rule = "does not fit base model 'base:code': that is an adapter's endpoint, not a base"
    first, second = adapter(name="code"), adapter(base_model="base:code")
    assert complaints(adapters=[first, second]) == (f"adapters[1] {rule}",)
    assert complaints(adapters=[second, first]) == (f"adapters[0] {rule}",)
    assert complaints(endpoints=[endpoint(id="base"), endpoint(id="base:code", adapter="code")], adapters=[second]) == (
        f"adapters[0] {rule}",
    )


def test_an_adapters_context_is_no_longer_than_its_bases() -> None:
    RoutingConfig.from_mapping(mapping(adapters=[adapter(name="code", max_context_length=8192)]))
    assert complaints(adapters=[adapter(name="code", max_context_length=8193)]) == (
        "adapters[0] does not fit base model 'base': its context of 8193 tokens is longer than the base's 8192",
    )


def test_an_adapter_was_trained_on_its_bases_weights() -> None:
    assert complaints(adapters=[adapter(name="code", trained_on="llama")]) == (
        "adapters[0] does not fit base model 'base': it was trained on 'llama', and the base serves 'qwen3-8b'",
    )


def test_an_alias_leads_to_an_id() -> None:
    assert complaints(aliases={"chat": "base", "x": "gone", "y": "chat", "z": "z"}) == (
        "aliases.x leads to 'gone', which is no id",
        "aliases.y leads to 'chat', which is an alias itself",
        "aliases.z leads to 'z', which is an alias itself",
    )


def test_an_alias_is_not_hidden_behind_an_id() -> None:
    assert complaints(aliases={"chat": "base", "base": "base:code", "base:code": "base"}) == (
        "aliases.base is hidden behind the id of endpoints[0]",
        'aliases."base:code" is hidden behind the id of adapters[0]',
    )


def test_the_default_is_there() -> None:
    assert complaints(default="gone") == ("default is 'gone', which is neither an id nor an alias",)
    assert complaints(default="") == ("default is '', which is neither an id nor an alias",)


def test_all_problems_are_found_at_once() -> None:
    found = problems(
        lambda: RoutingConfig.from_mapping(
            {
                "default": "nobody",
                "endpoint": [],
                "endpoints": [
                    endpoint(max_context_length=-1, status=None),
                    endpoint(id="b", tokens=1),
                    endpoint(id="a", description=0),
                    endpoint(id="c"),
                ],
                "adapters": [
                    adapter(base_model="gone", rank="8"),
                    adapter(base_model="c", name="y", max_context_length=5000),
                ],
                "aliases": {"b": "a", "x": "gone", "y": 5},
            }
        )
    )
    assert [problem.partition(" ")[0] for problem in found] == [
        "endpoint",
        "schema",
        "endpoints[0].max_context_length",
        "endpoints[0].status",
        "endpoints[1].tokens",
        "endpoints[2].description",
        "adapters[0].rank",
        "aliases.y",
        "endpoints[2].id",
        "adapters[0].base_model",
        "adapters[1]",
        "aliases.b",
        "aliases.x",
        "default",
    ]


def test_one_fault_does_not_look_like_several() -> None:
    """What leads to an id is right while the id is, whatever else is wrong with its table."""
    tables = [endpoint(id="base", max_context_length="8k", base_model=1)]
    adapters = [adapter(name="code", trained_on="llama", max_context_length=9000, rank=0)]
    assert complaints(endpoints=tables, adapters=adapters) == (
        "endpoints[0].base_model must be a str, not 1",
        "endpoints[0].max_context_length must be an int, not '8k'",
        "adapters[0].rank must be an int of 1 or more, not 0",
    )
    assert complaints(aliases={"chat": 5}) == ("aliases.chat must be a str, not 5",)


# Problems: files


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
        ("m.toml", "", "schema is missing"),
        ("m.json", "{", "the file is not JSON: "),
        ("m.json", "", "the file is not JSON: "),
        ("m.json", '{"schema": 1,}', "the file is not JSON: "),
        ("m.json", '{"schema": 1} x', "the file is not JSON: "),
        ("m.json", "[" * 10**6, "the file is nested too deeply"),
        ("m.json", "[]", "the configuration must be a table, not []"),
        ("m.json", '{"schema": NaN}', "the file is not JSON: NaN is not a number of JSON's"),
        ("m.json", '{"schema": -Infinity}', "the file is not JSON: -Infinity is not a number of JSON's"),
        ("m.json", b'{"schema": 1, "default": "\xff"}', "the file is not UTF-8: "),
        ("m.yaml", "schema: 1", "the name must end in .toml or .json"),
        ("toml", "schema = 1", "the name must end in .toml or .json"),
    ],
)
def test_a_broken_file_is_one_problem_with_its_name(tmp_path: Path, name: str, content: str | bytes, rule: str) -> None:
    path = written(tmp_path, content, name)
    (problem,) = problems(lambda: RoutingConfig.read(path))
    assert problem.startswith(f"{path}: {rule}")
    assert len(problem) < len(str(path)) + 200


def test_a_file_that_cannot_be_opened_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    for name in ("gone.toml", "folder.json", "gone/gone.toml"):
        (problem,) = problems(lambda name=name: RoutingConfig.read(tmp_path / name))  # type: ignore[misc]
        assert problem.startswith(f"{tmp_path / name}: the file cannot be read: ")


def test_the_error_of_the_system_is_the_cause(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        RoutingConfig.read(tmp_path / "gone.toml")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_each_problem_in_a_file_has_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT.replace("schema = 1", "schema = 2\nx = 3"))
    assert problems(lambda: RoutingConfig.read(path)) == (
        f"{path}: x is no key here: the keys are schema, default, endpoints, adapters, aliases",
        f"{path}: schema must be 1, not 2",
    )


def test_a_line_break_in_a_name_makes_no_line_of_its_own() -> None:
    (problem,) = problems(lambda: RoutingConfig.read("no\nsuch.toml"))
    assert problem.startswith("no such.toml: the file cannot be read: ")


def test_a_key_that_json_gives_twice_is_a_problem_wherever_it_is(tmp_path: Path) -> None:
    content = """{"schema": 1, "schema": 1, "default": "a", "endpoints": [
        {"id": "b", "base_model": "w"}, {"id": "z", "base_model": "w", "id": "a", "id": "a"}],
        "aliases": {"a b": "a", "x": "a", "a b": "b"}}"""
    path = written(tmp_path, content, "models.json")
    assert problems(lambda: RoutingConfig.read(path)) == (
        f"{path}: schema is given twice",
        f"{path}: endpoints[1].id is given twice",
        f'{path}: aliases."a b" is given twice',
    )


# The error


def test_a_copy_of_an_error_has_the_same_problems() -> None:
    error = ConfigError(["a is wrong", "b too"])
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is ConfigError
        assert twin.problems == error.problems == ("a is wrong", "b too")
        assert str(twin) == "a is wrong\nb too"
        assert twin.args == (twin.problems,)


def test_an_error_is_one_of_routing_and_a_value_error() -> None:
    assert issubclass(ConfigError, RoutingError)
    assert issubclass(ConfigError, ValueError)


# The registry


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


def test_an_endpoint_begins_with_the_status_that_was_declared() -> None:
    models = RoutingConfig((replace(BASE, status=EndpointStatus.DISABLED),)).registry()
    assert models.available_endpoints() == []


# Live reload


def changed(change: RegistryChange) -> tuple[str, ...]:
    assert change.added == change.removed == ()
    return change.changed


def test_a_reload_of_the_same_file_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
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


def test_a_reload_touches_only_what_is_different(tmp_path: Path) -> None:
    models = CONFIG.registry()
    adapters = AdapterRegistry(models)
    before = models.generation("base")
    text = TEXT.replace('"code"', '"chat"').replace("base:code", "base:chat")
    with ModelRouter(models).lease("gpt-4o-mini") as lease:
        change = models.replace_with(RoutingConfig.read(written(tmp_path, text)).registry())
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


def test_another_default_is_another_endpoint_and_the_one_before_as_well() -> None:
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


def test_a_broken_file_leaves_the_old_directory_serving(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    models = RoutingConfig.read(path).registry()
    written(tmp_path, TEXT.replace("adapters", "adapter"))
    with pytest.raises(ConfigError):
        models.replace_with(RoutingConfig.read(path).registry())
    assert ModelRouter(models).route("gpt-4o-mini").adapter == "code"


def test_a_registry_in_use_becomes_what_a_new_one_would_be() -> None:
    """Whatever was served before, the names and adapters after a reload are those of the configuration."""
    models = ModelRegistry()
    for seed in range(50):
        config = random_config(random.Random(seed))
        models.replace_with(config.registry())
        fresh = config.registry()
        assert list(models) == list(fresh), seed
        assert models.default_endpoint() == fresh.default_endpoint(), seed
        assert tuple(AdapterRegistry(models)) == config.adapters, seed
        assert all(models.resolve(alias) == fresh.resolve(id) for alias, id in config.aliases), seed


# Cost


def test_ten_thousand_endpoints_are_read_in_less_than_25_times_what_the_parser_takes(tmp_path: Path) -> None:
    tables = (
        f'[[endpoints]]\nid = "model-{number}"\nbase_model = "qwen3-8b"\nmax_context_length = 32768\n'
        for number in range(10_000)
    )
    path = written(tmp_path, "schema = 1\n" + "\n".join(tables))

    def seconds(read: Callable[[], object]) -> float:
        start = time.perf_counter()
        read()
        return time.perf_counter() - start

    parsing, reading = [], []
    for _ in range(5):
        parsing.append(seconds(lambda: tomllib.loads(path.read_text(encoding="utf-8"))))
        reading.append(seconds(lambda: RoutingConfig.read(path)))
    assert min(reading) < 25 * min(parsing)


def test_only_who_reads_a_file_imports_a_parser() -> None:
    folder = str(Path(bonsai_routing.__file__).parent.parent)
    code = f"""if True:
        import sys
        sys.path.insert(0, {folder!r})
        import bonsai_routing.config
        print(*sys.modules.keys() & {{'tomllib', 'json', 'difflib', 'pathlib', 'typing'}})
    """
    # Isolated and without site, which may import anything.
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []

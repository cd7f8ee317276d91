"""What is reported about a single value of a mapping, and what a PEFT directory gives."""

import json
import math
import tomllib
from pathlib import Path

import pytest
from config_helpers import BASE, CODE, PEFT, TEXT, adapter, endpoint, mapping, problems, problems_with, write_file

from bonsai_routing import EndpointStatus, LoraAdapter, ModelEndpoint, RegistryChange
from bonsai_routing.config import RoutingConfig

# PEFT directories


def peft_config(**fields: object) -> RoutingConfig:
    table = {"base_model": "base", **fields}
    return RoutingConfig.from_mapping(mapping(adapters=[table], aliases=None, default=None), directory=PEFT)


def test_a_peft_directory_describes_its_adapter() -> None:
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
    path = write_file(conf, text)
    assert RoutingConfig.read(path).adapters[0].source == str(conf / "code")
    monkeypatch.chdir(tmp_path)
    assert RoutingConfig.read("conf/models.toml").adapters[0].source == str(Path("conf", "code"))
    monkeypatch.chdir(conf)
    assert RoutingConfig.read("models.toml").adapters[0].source == "code"
    assert RoutingConfig.from_mapping(tomllib.loads(text)).adapters[0].source == "code"


def test_an_absolute_peft_directory_is_not_changed(tmp_path: Path) -> None:
    fields: dict[str, object] = {"base_model": "base", "peft": str(PEFT / "code")}
    config = RoutingConfig.from_mapping(mapping(adapters=[fields]), directory=tmp_path)
    assert config.adapters[0].source == str(PEFT / "code")


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


def test_the_name_of_a_peft_directory_is_checked(tmp_path: Path) -> None:
    directory = tmp_path / " code"
    directory.mkdir()
    config = (PEFT / "code" / "adapter_config.json").read_bytes()
    (directory / "adapter_config.json").write_bytes(config)
    table = {"base_model": "base", "peft": str(directory)}
    assert problems_with(adapters=[table], aliases=None, default=None) == (
        "adapters[0].name is ' code', which begins or ends with white space",
    )
    RoutingConfig.from_mapping(mapping(adapters=[{**table, "name": "code"}]))


def test_a_peft_directory_without_a_name_is_a_problem() -> None:
    table = {"base_model": "base", "peft": "/"}
    (problem,) = problems_with(adapters=[table], aliases=None, default=None)
    assert problem.startswith("adapters[0].peft cannot be read: ")


def test_a_number_too_large_for_peft_is_a_problem_of_its_directory(tmp_path: Path) -> None:
    config = json.loads((PEFT / "code" / "adapter_config.json").read_bytes())
    write_file(tmp_path, json.dumps({**config, "lora_alpha": 10**400}), "adapter_config.json")
    (problem,) = problems_with(adapters=[{"base_model": "base", "peft": str(tmp_path)}], aliases=None, default=None)
    assert problem.startswith("adapters[0].peft cannot be read: ")


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


# Problems


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
        ({"metadata": None}, ".metadata must be a mapping, not None"),
        ({"metadata": {"a": {5: 6}}}, ".metadata.a must have text for keys, not 5"),
        ({"metadata": {"a.b": [math.nan]}}, '.metadata."a.b"[0] must be a finite number, not nan'),
    ],
)
def test_a_wrong_value_of_an_endpoint_is_named(fields: dict[str, object], problem: str) -> None:
    assert problems_with(endpoints=[endpoint(id="base"), endpoint(**fields)]) == (f"endpoints[1]{problem}",)


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
        ({"metadata": ["a"]}, ".metadata must be a mapping, not ['a']"),
        ({"metadata": {"a": 1j}}, ".metadata.a must be a str, int, float, bool, None, list, tuple or mapping, not 1j"),
    ],
)
def test_a_wrong_value_of_an_adapter_is_named(fields: dict[str, object], problem: str) -> None:
    wanted = problems_with(adapters=[adapter(name="code"), adapter(**fields)])
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
        ({"aliases": {"chat": "base", "x": True}}, "aliases.x must be a str or an array, not True"),
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
    assert problems_with(**changes) == (problem,)


def test_a_key_is_text() -> None:
    table: dict[object, object] = {8: "base", None: "base"}
    table.update(mapping())
    assert problems(lambda: RoutingConfig.from_mapping(table)) == (  # type: ignore[arg-type]
        "the configuration must have text for keys, not 8",
        "the configuration must have text for keys, not None",
    )


@pytest.mark.parametrize("value", [None, [], "schema = 1", 1])
def test_a_value_that_is_not_a_table_is_one_problem(value: object) -> None:
    read = problems(lambda: RoutingConfig.from_mapping(value))  # type: ignore[arg-type]
    assert read == (f"the configuration must be a table, not {value!r}",)


@pytest.mark.parametrize("key", ["id", "base_model", "max_context_length"])
def test_an_endpoint_needs_an_id_weights_and_a_context_length(key: str) -> None:
    table = endpoint(id="b")
    del table[key]
    assert problems_with(endpoints=[endpoint(id="base"), table]) == (f"endpoints[1].{key} is missing",)


@pytest.mark.parametrize("key", ["name", "base_model", "source"])
def test_an_adapter_needs_a_name_a_base_and_a_source(key: str) -> None:
    table = adapter()
    del table[key]
    assert problems_with(adapters=[adapter(name="code"), table]) == (f"adapters[1].{key} is missing",)


def test_an_adapter_from_a_peft_directory_needs_a_base() -> None:
    table = {"peft": str(PEFT / "code")}
    assert problems_with(adapters=[adapter(name="code"), table]) == ("adapters[1].base_model is missing",)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"defualt": "base"}, "defualt is not a known key; did you mean 'default'?"),
        (
            {"endpoints": [endpoint(id="base", maxContextLength=5)]},
            "endpoints[0].maxContextLength is not a known key; did you mean 'max_context_length'?",
        ),
        (
            {"adapters": [adapter(name="code", sclaing=5)]},
            "adapters[0].sclaing is not a known key; did you mean 'scaling'?",
        ),
        ({"adapters": [adapter(name="code", pef=".")]}, "adapters[0].pef is not a known key; did you mean 'peft'?"),
        ({"a b": 1}, '"a b" is not a known key; the keys are schema, default, endpoints, adapters, aliases'),
    ],
)
def test_an_unknown_key_gets_the_most_similar_key_as_a_suggestion(changes: dict[str, object], problem: str) -> None:
    assert problems_with(**changes) == (problem,)


def test_a_misspelt_key_is_not_missing_as_well() -> None:
    table = endpoint(id="b", max_context_lenght=5)
    del table["max_context_length"]
    assert problems_with(endpoints=[endpoint(id="base"), table]) == (
        "endpoints[1].max_context_lenght is not a known key; did you mean 'max_context_length'?",
    )


def test_an_endpoint_has_no_is_default_key() -> None:
    (problem,) = problems_with(endpoints=[endpoint(id="base", is_default=True)])
    assert problem.startswith("endpoints[0].is_default is not a known key; the keys are id, base_model,")


@pytest.mark.parametrize(
    ("alias", "path"),
    [
        ("a-b_8", "aliases.a-b_8"),
        ("gpt-4.1", 'aliases."gpt-4.1"'),
        ('"', 'aliases."\\""'),
        ("模型", 'aliases."模型"'),
        ("\ud800\u200b", 'aliases."\\ud800\\u200b"'),
    ],
)
def test_a_key_is_quoted_if_toml_requires_quotes(alias: str, path: str) -> None:
    assert problems_with(aliases={alias: "gone"}, default=None) == (f"{path} points to 'gone', which is not an id",)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('gpt-4.1 = "base"', ["gpt-4.1"]),
        ('gpt-4.1 = "base"\ngpt-4.5-mini = "base"', ["gpt-4.1", "gpt-4.5-mini"]),
        ('a.b.c.d = "base"', ["a.b.c.d"]),
        ('a."b c".d = "base"', ["a.b c.d"]),
        ('[aliases.gpt-4]\n1 = "base"', ["gpt-4.1"]),
    ],
)
def test_a_dotted_alias_is_named_with_the_quotes_that_it_needs(tmp_path: Path, line: str, names: list[str]) -> None:
    path = write_file(tmp_path, TEXT + line)
    assert problems(lambda: RoutingConfig.read(path)) == tuple(
        f'{path}: aliases."{name}" must be quoted; without quotes, it is a dotted key' for name in names
    )


def test_a_dotted_alias_counts_as_an_alias() -> None:
    aliases = {"gpt-4": {"1": "base", "5": "gone"}}
    assert problems_with(aliases=aliases, default="gpt-4.1") == (
        'aliases."gpt-4.1" must be quoted; without quotes, it is a dotted key',
        'aliases."gpt-4.5" must be quoted; without quotes, it is a dotted key',
        "aliases.\"gpt-4.5\" points to 'gone', which is not an id",
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("base", "base"),
        (["base"], "base"),
        (["base", "base:code"], ("base", "base:code")),
        ([{"base": 90, "base:code": 10}, "base"], ({"base": 90, "base:code": 10}, "base")),
        ([{"base": 90, "base:code": 0}], "base"),
        (("base:code", {"base": 1}), ("base:code", "base")),
    ],
)
def test_an_alias_has_a_target_or_an_array_of_them(value: object, shown: object) -> None:
    config = RoutingConfig.from_mapping(mapping(adapters=[adapter(name="code")], aliases={"chat": value}))
    assert config.aliases == (("chat", shown),)
    assert config.registry().aliases() == {"chat": shown}
    assert hash(config) == hash(RoutingConfig.from_mapping(config.to_mapping()))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "aliases.x is refused: an alias must have a target"),
        ([5], "aliases.x is refused: target must be a str, a ModelId or a mapping of ids to weights, not 5"),
        (
            [["base"]],
            "aliases.x is refused: target must be a str, a ModelId or a mapping of ids to weights, not ['base']",
        ),
        ([{}], "aliases.x is refused: target must have an id with a weight above 0, not {}"),
        ([{"base": 0.5}], "aliases.x is refused: the weight of 'base' must be an int, not 0.5"),
        ([{"base": -1}], "aliases.x is refused: the weight of 'base' must be from 0 to 2**63 - 1, not -1"),
        ([{5: 1}], "aliases.x[0] must have text for keys, not 5"),
        (["base", {"gpt-4": {"1": 90}}], 'aliases.x[1]."gpt-4.1" must be quoted; without quotes, it is a dotted key'),
        (["base", "gone"], "aliases.x points to 'gone', which is not an id"),
        ([{"base": 1, "x": 1}], "aliases.x points to 'x', which is an alias, not an id"),
    ],
)
def test_each_mistake_in_the_targets_of_an_alias_is_named(value: object, problem: str) -> None:
    assert problems_with(aliases={"chat": "base", "x": value}) == (problem,)


def test_a_weight_that_is_given_twice_is_a_problem(tmp_path: Path) -> None:
    path = write_file(
        tmp_path,
        """
        {
          "schema": 1,
          "endpoints": [{"id": "a", "base_model": "w", "max_context_length": 8}],
          "aliases": {"x": [{"a": 1, "a": 2}]}
        }
        """,
        "models.json",
    )
    assert problems(lambda: RoutingConfig.read(path)) == (f"{path}: aliases.x[0].a is given twice",)


@pytest.mark.parametrize("value", [{"1": 5}, {"1": {}}, {8: "base"}, {1 << 10**5: "base"}, {}])
def test_any_other_table_is_not_a_target(value: object) -> None:
    (problem,) = problems_with(aliases={"chat": "base", "gpt-4": value})
    assert problem.startswith("aliases.gpt-4 must be a str or an array, not ")


def nested_tables(depth: int) -> object:
    value: object = "base"
    for _ in range(depth):
        value = {"x": value}
    return value


def test_tables_in_an_alias_may_be_nested_very_deeply() -> None:
    (problem,) = problems_with(aliases={"chat": "base", "x": nested_tables(10**5)})
    assert problem.startswith("aliases.x must be a str or an array, not ")


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
    found = problems_with(schema=value, endpoints=tables)
    assert [problem.partition(" ")[0] for problem in found] == [
        "schema",
        f"endpoints[1].{'status' if isinstance(value, str) else 'id'}",
    ]
    assert all(len(problem) < 300 for problem in found)


LONG = "x" * 10**6


@pytest.mark.parametrize(
    "changes",
    [
        {LONG: 1},
        {"default": LONG},
        {"aliases": {LONG: LONG}, "default": None},
        {"endpoints": [endpoint(id="base"), endpoint(id=LONG), endpoint(id=LONG)]},
        {"endpoints": [endpoint(id="base"), endpoint(**{LONG: LONG})]},
        {"adapters": [adapter(name="code"), adapter(name=LONG), adapter(name=LONG)]},
        {"adapters": [adapter(name="code"), adapter(base_model=LONG)]},
        {"adapters": [adapter(name="code", metadata={LONG: [{LONG: {1}}]})]},
        {"adapters": [adapter(name="code"), adapter(trained_on=LONG)]},
        {"adapters": [adapter(name="code"), {"base_model": "base", "peft": LONG}]},
        {"adapters": [adapter(name="code"), {"base_model": "base", "peft": "\0" + LONG}]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_no_problem_is_a_huge_line(changes: dict[str, object]) -> None:
    assert all(len(problem) <= 503 for problem in problems_with(**changes))


def test_the_rule_is_shown_beside_a_long_key_and_a_long_name() -> None:
    cut = "x" * 60 + "..." + "x" * 60
    quoted = f"'{'x' * 59}...{'x' * 59}'"
    assert problems_with(aliases={LONG: LONG[1:]}, default=None) == (
        f"aliases.{cut} points to {quoted}, which is not an id",
    )
    assert problems_with(endpoints=[endpoint(id="base"), endpoint(id=LONG), endpoint(id=LONG)]) == (
        f"endpoints[2].id is {quoted}, which is the id of endpoints[1]",
    )
    assert problems_with(adapters=[adapter(name="code"), adapter(name="y", trained_on=LONG)]) == (
        (
            f"adapters[1] does not fit base model 'base': it was trained on '{cut}', and the base serves 'qwen3-8b'; "
            "if these are the same weights, set check_base to false"
        ),
    )


def test_no_problem_of_a_configuration_in_python_is_a_huge_line() -> None:
    found = problems(lambda: RoutingConfig(aliases=((LONG, LONG),), default=LONG[1:], unchecked=(LONG,)))
    assert len(found) == 3
    assert all(len(problem) <= 503 for problem in found)


def test_metadata_is_a_table_of_the_users_own() -> None:
    text = TEXT.replace("[[adapters]]", '[endpoints.metadata]\nurl = "http://one"\ntags = ["a", {b = 1}]\n[[adapters]]')
    text = text.replace("[aliases]", '[adapters.metadata]\nowner = "search"\n[aliases]')
    config = RoutingConfig.from_mapping(tomllib.loads(text))
    assert config.endpoints[0].metadata == {"url": "http://one", "tags": ("a", {"b": 1})}
    assert config.adapters[0].metadata == {"owner": "search"}
    assert config.registry().resolve("gpt-4o-mini") == ModelEndpoint(
        "base:code",
        "qwen3-8b",
        adapter="code",
        max_context_length=8192,
        metadata={"url": "http://one", "tags": ["a", {"b": 1}], "owner": "search"},
    )
    (peft,) = peft_config(peft="code", metadata={"owner": "law"}).adapters
    assert (peft.rank, peft.metadata) == (8, {"owner": "law"})


def test_a_date_in_metadata_is_a_problem_with_its_path(tmp_path: Path) -> None:
    path = write_file(
        tmp_path, TEXT.replace("[[adapters]]", "[endpoints.metadata.price]\nsince = 2026-01-02\n[[adapters]]")
    )
    (problem,) = problems(lambda: RoutingConfig.read(path))
    rule = "must be a str, int, float, bool, None, list, tuple or mapping, not datetime.date(2026, 1, 2)"
    assert problem == f"{path}: endpoints[0].metadata.price.since {rule}"


def test_a_key_that_is_given_twice_in_metadata_is_a_problem_with_its_path(tmp_path: Path) -> None:
    path = write_file(
        tmp_path,
        """
        {
          "schema": 1,
          "endpoints": [
            {
              "id": "a",
              "base_model": "w",
              "max_context_length": 8,
              "metadata": {"url": 1, "url": 2, "tags": ["x", {"b.c": 1, "b.c": 1}]}
            }
          ],
          "adapters": [{"name": "x", "base_model": "a", "source": "s", "metadata": {"a": {"b": 1, "b": 1}}}]
        }
        """,
        "models.json",
    )
    assert problems(lambda: RoutingConfig.read(path)) == (
        f"{path}: endpoints[0].metadata.url is given twice",
        f'{path}: endpoints[0].metadata.tags[1]."b.c" is given twice',
        f"{path}: adapters[0].metadata.a.b is given twice",
    )


def test_a_number_too_large_for_a_float_is_a_problem() -> None:
    (problem,) = problems_with(adapters=[adapter(name="code", scaling=10**400)])
    assert problem.startswith("adapters[0].scaling ")


# Beside the fields of an adapter, its table has two keys about how it is published.


def test_an_adapter_may_be_published_unchecked_and_with_a_status() -> None:
    written = mapping(
        adapters=[
            adapter(trained_on="llama", check_base=False, status="loading"),
            adapter(name="y", check_base=True, status="ready"),
        ],
        aliases=None,
        default=None,
    )
    config = RoutingConfig.from_mapping(written)
    assert config.unchecked == ("base:x",)
    assert config.adapter_status == (("base:x", EndpointStatus.LOADING),)
    assert RoutingConfig.from_mapping(config.to_mapping()) == config
    assert {str(each.id): each.status.value for each in config.registry()} == {
        "base": "ready",
        "base:x": "loading",
        "base:y": "ready",
    }
    models = config.registry()
    models.set_status("base:x", "ready")
    assert models.replace_with(config.registry()) == RegistryChange((), (), ())
    assert [each.status for each in models] == ["ready"] * 3


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ({"check_base": "no"}, "adapters[0].check_base must be a bool, not 'no'"),
        ({"check_base": 0}, "adapters[0].check_base must be a bool, not 0"),
        (
            {"status": "asleep"},
            "adapters[0].status must be one of 'ready', 'loading', 'error', 'disabled', not 'asleep'",
        ),
        ({"status": 5}, "adapters[0].status must be one of 'ready', 'loading', 'error', 'disabled', not 5"),
    ],
)
def test_the_two_keys_are_checked(field: dict[str, object], text: str) -> None:
    written = mapping(adapters=[adapter(**field)], aliases=None, default=None)
    assert problems(lambda: RoutingConfig.from_mapping(written)) == (text,)


def test_only_adapters_are_published_unchecked_or_with_a_status() -> None:
    assert problems(lambda: RoutingConfig((BASE,), (CODE,), unchecked=("base",), adapter_status=(("x", "error"),))) == (  # type: ignore[arg-type]
        "unchecked has 'base', which is not the id of an adapter",
        "adapter_status has 'x', which is not the id of an adapter",
    )
    with pytest.raises(TypeError, match="adapter_status must hold pairs of str"):
        RoutingConfig((BASE,), (CODE,), adapter_status=(("base:code",),))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unchecked must hold str objects, not 5"):
        RoutingConfig((BASE,), (CODE,), unchecked=(5,))  # type: ignore[arg-type]

"""What is reported about names and large numbers, and when the values of a configuration do not fit together."""

import json

import pytest
from config_helpers import BASE, CODE, adapter, endpoint, mapping, problems, problems_with

from bonsai_routing import LoraAdapter, ModelEndpoint
from bonsai_routing.config import RoutingConfig


def test_an_id_is_given_once() -> None:
    tables = [endpoint(id="base"), endpoint(id="base"), endpoint(id="base:code")]
    assert problems_with(endpoints=tables, adapters=[adapter(name="code")]) == (
        "endpoints[1].id is 'base', which is the id of endpoints[0]",
        "adapters[0].name makes the id 'base:code', which is the id of endpoints[2]",
    )


def test_two_adapters_of_one_base_have_two_names() -> None:
    assert problems_with(adapters=[adapter(name="code"), adapter(name="code")]) == (
        "adapters[1].name makes the id 'base:code', which is the id of adapters[0]",
    )


def test_an_adapter_needs_its_base() -> None:
    assert problems_with(adapters=[adapter(name="code"), adapter(base_model="gone")]) == (
        "adapters[1].base_model is 'gone', which is not an id",
    )


def test_an_alias_is_not_a_base() -> None:
    assert problems_with(adapters=[adapter(name="code"), adapter(base_model="chat")]) == (
        "adapters[1].base_model is 'chat', which is not an id",
    )


def test_an_adapters_endpoint_is_not_a_base_in_any_order() -> None:
    rule = "does not fit base model 'base:code': that is an adapter's endpoint, not a base"
    first, second = adapter(name="code"), adapter(base_model="base:code")
    assert problems_with(adapters=[first, second]) == (f"adapters[1] {rule}",)
    assert problems_with(adapters=[second, first]) == (f"adapters[0] {rule}",)
    assert problems_with(
        endpoints=[endpoint(id="base"), endpoint(id="base:code", adapter="code")], adapters=[second]
    ) == (f"adapters[0] {rule}",)


def test_an_adapters_context_is_no_longer_than_its_bases() -> None:
    RoutingConfig.from_mapping(mapping(adapters=[adapter(name="code", max_context_length=8192)]))
    assert problems_with(adapters=[adapter(name="code", max_context_length=8193)]) == (
        "adapters[0] does not fit base model 'base': its context of 8193 tokens is longer than the base's 8192",
    )


def test_an_adapter_was_trained_on_its_bases_weights() -> None:
    assert problems_with(adapters=[adapter(name="code", trained_on="llama")]) == (
        (
            "adapters[0] does not fit base model 'base': it was trained on 'llama', and the base serves 'qwen3-8b'; "
            "if these are the same weights, set check_base to false"
        ),
    )


def test_an_alias_points_to_an_id() -> None:
    assert problems_with(aliases={"chat": "base", "x": "gone", "y": "chat", "z": "z"}) == (
        "aliases.x points to 'gone', which is not an id",
        "aliases.y points to 'chat', which is an alias, not an id",
        "aliases.z points to 'z', which is an alias, not an id",
    )


def test_an_alias_is_not_shadowed_by_an_id() -> None:
    assert problems_with(aliases={"chat": "base", "base": "base:code", "base:code": "base"}) == (
        "aliases.base is shadowed by the id of endpoints[0]",
        'aliases."base:code" is shadowed by the id of adapters[0]',
    )


def test_the_default_is_there() -> None:
    assert problems_with(default="gone") == ("default is 'gone', which is neither an id nor an alias",)


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


def test_each_mistake_is_reported_once() -> None:
    """If an id is valid, names that point to it are valid, even if other fields of its table are invalid."""
    tables = [endpoint(id="base", max_context_length="8k", base_model=1)]
    adapters = [adapter(name="code", trained_on="llama", max_context_length=9000, rank=0)]
    assert problems_with(endpoints=tables, adapters=adapters) == (
        "endpoints[0].base_model must be a str, not 1",
        "endpoints[0].max_context_length must be an int, not '8k'",
        "adapters[0].rank must be an int of 1 or more, not 0",
    )
    assert problems_with(aliases={"chat": 5}) == ("aliases.chat must be a str or an array, not 5",)


def test_an_invalid_configuration_cannot_be_built() -> None:
    assert problems(lambda: RoutingConfig((BASE, BASE), (CODE, CODE), (("x", "y"), ("x", "base")), "z")) == (
        "endpoints[1].id is 'base', which is the id of endpoints[0]",
        "adapters[1].name makes the id 'base:code', which is the id of adapters[0]",
        "aliases.x is given twice",
        "aliases.x points to 'y', which is not an id",
        "default is 'z', which is neither an id nor an alias",
    )


def test_an_endpoint_may_not_call_itself_the_default() -> None:
    assert problems(lambda: RoutingConfig((BASE.set_default(),))) == (
        "endpoints[0].is_default must be False: the default is named by the key default",
    )


# Names

BAD_NAMES = [
    ("", "is blank"),
    (" \t\u3000", "is blank"),
    (" base", "begins or ends with white space"),
    ("base\xa0", "begins or ends with white space"),
    ("base\n", "begins or ends with white space"),
    ("a\tb", "holds a control character"),
    ("a\x00b", "holds a control character"),
    ("a\x1b[2Jb", "holds a control character"),
    ("a\x7fb", "holds a control character"),
    ("a\x9fb", "holds a control character"),
    ("a\u2028b", "holds a control character"),
    ("a\u2029b", "holds a control character"),
]


@pytest.mark.parametrize(("name", "rule"), BAD_NAMES)
def test_an_id_or_alias_that_is_blank_padded_or_unprintable_is_refused(name: str, rule: str) -> None:
    wanted = (f"endpoints[1].id is {name!r}, which {rule}",)
    assert problems_with(endpoints=[endpoint(id="base"), endpoint(id=name)]) == wanted
    assert problems(lambda: RoutingConfig((BASE, ModelEndpoint(name, "w")), aliases=(("x", name),))) == wanted
    wanted = (f"aliases.{json.dumps(name)} {rule}",)
    assert problems_with(aliases={name: "base"}, default=name) == wanted
    assert problems(lambda: RoutingConfig((BASE,), aliases=((name, "base"),))) == wanted
    assert problems_with(default=name) == (f"default is {name!r}, which {rule}",)


@pytest.mark.parametrize(("name", "rule"), BAD_NAMES[1:])
def test_the_name_of_an_adapter_is_checked_too(name: str, rule: str) -> None:
    wanted = (f"adapters[0].name is {name!r}, which {rule}",)
    assert problems_with(adapters=[adapter(name=name)], aliases=None, default=None) == wanted
    assert problems(lambda: RoutingConfig((BASE,), (LoraAdapter(name, "base", "s"),), default=f"base:{name}")) == wanted


def test_names_may_hold_spaces_and_the_letters_of_any_language() -> None:
    RoutingConfig((ModelEndpoint("Qwen 3", "w"), ModelEndpoint("模型", "w")), aliases=(("\U0001f333", "模型"),))


# Numbers

LARGEST = 2**63 - 1


def test_whole_numbers_have_an_upper_limit() -> None:
    limit = f"must be at most {LARGEST}, not {LARGEST + 1}"
    code = adapter(name="code", rank=LARGEST + 1, max_context_length=LARGEST + 1)
    assert problems_with(endpoints=[endpoint(id="base", max_context_length=LARGEST + 1)], adapters=[code]) == (
        f"endpoints[0].max_context_length {limit}",
        f"adapters[0].rank {limit}",
        f"adapters[0].max_context_length {limit}",
    )
    code = adapter(name="code", rank=LARGEST, max_context_length=LARGEST)
    RoutingConfig.from_mapping(mapping(endpoints=[endpoint(id="base", max_context_length=LARGEST)], adapters=[code]))
    assert problems(lambda: RoutingConfig((ModelEndpoint("a", "w", max_context_length=LARGEST + 1),))) == (
        f"endpoints[0].max_context_length {limit}",
    )


def test_a_number_that_is_too_large_is_the_only_problem_of_its_adapter() -> None:
    (problem,) = problems_with(adapters=[adapter(name="code", max_context_length=LARGEST + 1)])
    assert problem.startswith("adapters[0].max_context_length must be at most ")


@pytest.mark.parametrize("number", [10**4000, 1 << 10**5, -(1 << 10**5)], ids=["4000", "2**100000", "negative"])
def test_a_number_of_thousands_of_digits_is_refused_wherever_it_stands(number: int) -> None:
    tables = [endpoint(id="base", max_context_length=number), endpoint(id=number)]
    code = adapter(name="code", rank=number, scaling=number, max_context_length=number, trained_on=number)
    found = problems_with(endpoints=tables, adapters=[code], schema=number, default=number, aliases={"x": number})
    assert sorted(problem.partition(" ")[0] for problem in found) == [
        "adapters[0].max_context_length",
        "adapters[0].rank",
        "adapters[0].scaling",
        "adapters[0].trained_on",
        "aliases.x",
        "default",
        "endpoints[0].max_context_length",
        "endpoints[1].id",
        "schema",
    ]

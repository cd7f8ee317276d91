"""What is reported when the values of a configuration do not fit together."""

from config_helpers import BASE, CODE, adapter, endpoint, mapping, problems, problems_with

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
    assert problems_with(default="") == ("default is '', which is neither an id nor an alias",)


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
    assert problems_with(aliases={"chat": 5}) == ("aliases.chat must be a str, not 5",)


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


def test_a_context_too_long_to_be_written_out_does_not_fit() -> None:
    (problem,) = problems_with(adapters=[adapter(name="code", max_context_length=1 << 10**5)])
    assert problem.startswith("adapters[0] does not fit base model 'base': ")

"""The metadata of endpoints and adapters: which values it takes, and that they never change."""

import copy
import datetime
import json
import math
import operator
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest

from bonsai_routing import AdapterRegistry, LoraAdapter, ModelEndpoint, ModelRegistry, ModelRouter, RoutingConfig

VALUES: dict[str, Any] = {
    "url": "http://one.internal:8000",
    "tags": ["vision", "tools"],
    "price": {"eur": [0.5, 2], "free": False, "until": None},
    "": [[], {}],
    "limits": [-(2**63), 2**63 - 1],
}
FROZEN: dict[str, Any] = {
    "url": "http://one.internal:8000",
    "tags": ("vision", "tools"),
    "price": {"eur": (0.5, 2), "free": False, "until": None},
    "": ((), {}),
    "limits": (-(2**63), 2**63 - 1),
}


def endpoint(metadata: Any) -> ModelEndpoint:
    return ModelEndpoint("a", "w", metadata=metadata)


def adapter(metadata: Any) -> LoraAdapter:
    return LoraAdapter("x", "a", "s", metadata=metadata)


Make = Callable[[Any], ModelEndpoint | LoraAdapter]
each_kind = pytest.mark.parametrize("make", [endpoint, adapter])


def mapping_of_depth(levels: int) -> dict[str, object]:
    """Return a mapping with lists in it, of so many levels in all."""
    nested: list[object] = []
    for _ in range(levels - 2):
        nested = [nested]
    return {"a": nested}


def items_of(value: object) -> list[object]:
    """Return a value and all values in it."""
    inner = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, tuple) else []
    return [value, *(each for item in inner for each in items_of(item))]


@each_kind
def test_metadata_is_empty_unless_it_is_given(make: Make) -> None:
    assert make({}).metadata == {} == ModelEndpoint("a", "w").metadata == LoraAdapter("x", "a", "s").metadata
    assert make({}) in (ModelEndpoint("a", "w"), LoraAdapter("x", "a", "s"))


@each_kind
def test_metadata_holds_what_it_is_given_with_lists_as_tuples(make: Make) -> None:
    assert make(VALUES).metadata == FROZEN
    assert list(make(VALUES).metadata) == list(VALUES)


def test_metadata_may_be_any_mapping() -> None:
    for given in (
        OrderedDict(VALUES),
        MappingProxyType(VALUES),
        {**VALUES, "price": MappingProxyType(VALUES["price"])},
    ):
        assert endpoint(given) == endpoint(VALUES)


def test_metadata_is_not_the_callers_own_dictionary() -> None:
    mine: dict[str, Any] = {"tags": ["vision"], "price": {"eur": 1}}
    made = endpoint(mine)
    mine["tags"].append("tools")
    mine["price"]["eur"] = 2
    mine["owner"] = "me"
    assert made.metadata == {"tags": ("vision",), "price": {"eur": 1}}


@pytest.mark.parametrize(
    "change",
    [
        lambda each: operator.setitem(each, "eur", 1),
        lambda each: operator.delitem(each, "eur"),
        lambda each: each.__ior__({"eur": 1}),
        lambda each: each.clear(),
        lambda each: each.pop("eur"),
        lambda each: each.pop("eur", None),
        lambda each: each.popitem(),
        lambda each: each.setdefault("usd", 1),
        lambda each: each.update({"eur": 1}),
        lambda each: each.update(eur=1),
        lambda each: setattr(each, "eur", 1),
    ],
)
def test_metadata_cannot_be_changed(change: Callable[[Any], object]) -> None:
    made = endpoint({"eur": 0, "price": {"eur": 0}, "list": [{"eur": 0}]})
    for each in (made.metadata, made.metadata["price"], made.metadata["list"][0]):
        with pytest.raises((TypeError, AttributeError)):
            change(each)
    assert made == endpoint({"eur": 0, "price": {"eur": 0}, "list": [{"eur": 0}]})


def test_a_change_says_what_to_do_instead() -> None:
    metadata: Any = endpoint(VALUES).metadata
    with pytest.raises(TypeError, match="this dictionary cannot be changed; make a new one from it"):
        metadata["url"] = "http://two"
    changed = replace(endpoint(VALUES), metadata={**metadata, "url": "http://two"})
    assert changed.metadata == {**FROZEN, "url": "http://two"}


@each_kind
def test_metadata_is_compared_and_hashed_by_value(make: Make) -> None:
    same = make(dict(reversed(json.loads(json.dumps(VALUES)).items())))
    assert make(VALUES) == same
    assert len({make(VALUES), same, make({})}) == 2
    assert make({"a": {"b": [1]}}) != make({"a": {"b": [2]}})
    assert make({"a": [1, 2]}) != make({"a": [2, 1]})


@each_kind
def test_metadata_can_be_written_as_json(make: Make) -> None:
    assert json.loads(json.dumps(make(VALUES).metadata)) == VALUES
    assert json.loads(json.dumps(make(VALUES).metadata, indent=1, sort_keys=True)) == VALUES


@each_kind
def test_metadata_survives_copies_and_pickles_and_stays_frozen(make: Make) -> None:
    made = make(VALUES)
    twins = [pickle.loads(pickle.dumps(made, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    twins += [copy.copy(made), copy.deepcopy(made), replace(made)]
    for twin in twins:
        assert twin == made
        assert hash(twin) == hash(made)
        assert [type(each) for each in items_of(twin.metadata)] == [type(each) for each in items_of(made.metadata)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(made.metadata, protocol)) == made.metadata
    assert copy.copy(made.metadata) == copy.deepcopy(made.metadata) == made.metadata
    assert asdict(made)["metadata"] == FROZEN


def test_metadata_goes_with_its_endpoint_wherever_it_goes() -> None:
    models = RoutingConfig((endpoint(VALUES),), (adapter({"owner": "me"}),), (("chat", "a"),)).registry()
    for registry in (models, copy.copy(models), copy.deepcopy(models), pickle.loads(pickle.dumps(models))):
        registry.set_status("a", "loading")
        registry.set_status("a", "ready")
        router = ModelRouter(registry)
        with router.lease("chat") as lease:
            assert lease.endpoint.metadata == FROZEN
        assert router.route("a:x").metadata == {**FROZEN, "owner": "me"}
        [loaded] = AdapterRegistry(registry)
        assert loaded.metadata == {"owner": "me"}


def test_frozen_metadata_is_taken_as_it_is() -> None:
    metadata = endpoint(VALUES).metadata
    assert endpoint(metadata).metadata is metadata
    assert endpoint(VALUES).with_context_length(1).set_default().metadata == metadata
    assert endpoint({"inner": metadata}).metadata == {"inner": metadata}


def test_an_endpoint_shows_its_metadata_only_if_it_has_some() -> None:
    assert repr(endpoint({})) == "ModelEndpoint('a', 'w')"
    made = endpoint({"tags": ["vision"], "price": {"eur": 1}})
    assert repr(made) == "ModelEndpoint('a', 'w', metadata={'tags': ('vision',), 'price': {'eur': 1}})"
    assert eval(repr(made)) == made


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    LARGE = 3


class Celsius(float):
    pass


class Label(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "a label"


def test_of_subclasses_of_text_and_numbers_only_the_value_is_kept() -> None:
    made = endpoint({Label("a"): Colour.RED, "b": Size.LARGE, "c": Celsius(1.5), "d": Label("e")})
    assert made.metadata == {"a": "red", "b": 3, "c": 1.5, "d": "e"}
    assert [type(each) for each in made.metadata] == [str] * 4
    assert [type(each) for each in made.metadata.values()] == [str, int, float, str]


# What is refused


@each_kind
@pytest.mark.parametrize("metadata", [None, 5, "text", [("a", 1)], {1, 2}, ModelRegistry], ids=repr)
def test_metadata_is_a_mapping(make: Make, metadata: object) -> None:
    with pytest.raises(TypeError) as caught:
        make(metadata)
    assert str(caught.value) == f"metadata must be a mapping, not {metadata!r}"


VALUE = "must be a str, int, float, bool, None, list, tuple or mapping"


@each_kind
@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        (
            {"price": {"since": datetime.date(2026, 1, 2)}},
            TypeError,
            f"metadata.price.since {VALUE}, not datetime.date(2026, 1, 2)",
        ),
        ({"tags": ["a", {"b": {1}}]}, TypeError, f"metadata.tags[1].b {VALUE}, not {{1}}"),
        ({"gpt-4.1 mini": b"x"}, TypeError, f"metadata.\"gpt-4.1 mini\" {VALUE}, not b'x'"),
        ({"": 1j}, TypeError, f'metadata."" {VALUE}, not 1j'),
        ({5: 1}, TypeError, "metadata must have text for keys, not 5"),
        ({"a": [{None: 1}]}, TypeError, "metadata.a[0] must have text for keys, not None"),
        ({"a": math.nan}, ValueError, "metadata.a must be a finite number, not nan"),
        ({"a": [1, -math.inf]}, ValueError, "metadata.a[1] must be a finite number, not -inf"),
        ({"a": 2**63}, ValueError, "metadata.a must be from -2**63 to 2**63 - 1, not 9223372036854775808"),
        ({"a": -(2**63) - 1}, ValueError, "metadata.a must be from -2**63 to 2**63 - 1, not -9223372036854775809"),
        (
            {"a": 10**5000},
            ValueError,
            "metadata.a must be from -2**63 to 2**63 - 1, not a value of type int that cannot be shown",
        ),
    ],
)
def test_a_value_that_json_cannot_hold_is_refused_with_its_path(
    make: Make, metadata: object, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        make(metadata)
    assert str(caught.value) == message


def test_a_long_value_is_cut() -> None:
    with pytest.raises(TypeError) as caught:
        endpoint({"a": b"x" * 10_000})
    assert str(caught.value) == f"metadata.a {VALUE}, not b'{'x' * 58}...{'x' * 59}'"


@each_kind
def test_metadata_may_have_32_levels(make: Make) -> None:
    made = make(mapping_of_depth(32))
    assert json.loads(json.dumps(made.metadata)) == mapping_of_depth(32)
    with pytest.raises(ValueError, match=r"^metadata\.a(\[0\]){31} must not be nested more than 32 levels deep$"):
        make(mapping_of_depth(33))
    with pytest.raises(ValueError, match="must not be nested more than 32 levels deep"):
        make({"b": made.metadata})


@each_kind
def test_metadata_that_contains_itself_is_refused(make: Make) -> None:
    endless: list[object] = []
    endless += [endless, endless]
    with pytest.raises(ValueError, match="must not be nested more than 32 levels deep"):
        make({"a": endless})
    circle: dict[str, object] = {}
    circle["a"] = circle
    with pytest.raises(ValueError, match="must not be nested more than 32 levels deep"):
        make(circle)

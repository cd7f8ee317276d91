import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest

from bonsai_routing import EndpointStatus, ModelEndpoint, ModelId, ModelRegistry

FULL = ModelEndpoint(
    "bonsai-8b:code",
    "qwen3-8b",
    display_name="Bonsai Code",
    description="writes programs",
    adapter="code",
    max_context_length=32768,
    is_default=True,
    status="loading",
    metadata={"tags": ["code"]},
)


def test_only_a_ready_endpoint_is_available() -> None:
    assert [status for status in EndpointStatus if status.is_available()] == [EndpointStatus.READY]


def test_a_status_is_its_text() -> None:
    assert [str(status) for status in EndpointStatus] == ["ready", "loading", "error", "disabled"]
    assert EndpointStatus("ready") is EndpointStatus.READY


@pytest.mark.parametrize("word", ["", "READY", "gone"])
def test_a_word_that_is_no_status_is_refused(word: str) -> None:
    message = f"status must be one of 'ready', 'loading', 'error', 'disabled', not {word!r}"
    with pytest.raises(ValueError, match=message):
        EndpointStatus(word)
    with pytest.raises(ValueError, match=message):
        ModelEndpoint("a", "b", status=word)


@pytest.mark.parametrize("status", [None, 0, True])
def test_what_is_not_text_is_no_status(status: Any) -> None:
    with pytest.raises(TypeError, match=f"status must be one of .*, not {status!r}"):
        ModelEndpoint("a", "b", status=status)


def test_a_new_endpoint_has_the_references_defaults() -> None:
    endpoint = ModelEndpoint("bonsai-8b", "qwen3-8b")
    assert endpoint.id == ModelId("bonsai-8b")
    assert endpoint.display_name == "bonsai-8b"
    assert endpoint.description == ""
    assert endpoint.base_model == "qwen3-8b"
    assert endpoint.adapter is None
    assert endpoint.max_context_length == 4096
    assert endpoint.is_default is False
    assert endpoint.status is EndpointStatus.READY


def test_the_fields_are_in_the_references_order_and_then_the_metadata() -> None:
    assert [field.name for field in dataclasses.fields(ModelEndpoint)] == [
        "id",
        "display_name",
        "description",
        "base_model",
        "adapter",
        "max_context_length",
        "is_default",
        "status",
        "metadata",
    ]


def test_an_id_may_be_given_as_text_or_as_an_id() -> None:
    assert ModelEndpoint("a", "b") == ModelEndpoint(ModelId("a"), "b")


def test_an_id_with_a_colon_attaches_no_adapter_by_itself() -> None:
    assert ModelEndpoint("bonsai-8b:code", "qwen3-8b").adapter is None


def test_a_status_given_as_text_becomes_the_status() -> None:
    assert FULL.status is EndpointStatus.LOADING


def test_an_empty_display_name_stays_empty() -> None:
    assert ModelEndpoint("a", "b", display_name="").display_name == ""


def test_no_more_than_id_and_base_model_are_positional() -> None:
    with pytest.raises(TypeError):
        ModelEndpoint("a", "b", "c")  # type: ignore[call-arg]


def test_builders_return_new_endpoints() -> None:
    endpoint = ModelEndpoint("a", "b")
    built = endpoint.with_adapter("x").with_description("y").with_context_length(0).set_default()
    assert built == ModelEndpoint("a", "b", adapter="x", description="y", max_context_length=0, is_default=True)
    assert endpoint == ModelEndpoint("a", "b")


def test_builders_check_as_the_constructor_does() -> None:
    endpoint = ModelEndpoint("a", "b")
    with pytest.raises(TypeError, match="adapter must be a str, not None"):
        endpoint.with_adapter(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="adapter must be a str or None, not 3"):
        endpoint.with_adapter(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="description must be a str, not None"):
        endpoint.with_description(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_context_length must be 0 tokens or more, not -1"):
        endpoint.with_context_length(-1)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("id", None, TypeError),
        ("id", b"a", TypeError),
        ("base_model", None, TypeError),
        ("display_name", 1, TypeError),
        ("description", None, TypeError),
        ("adapter", 1, TypeError),
        ("max_context_length", True, TypeError),
        ("max_context_length", 4096.0, TypeError),
        ("max_context_length", "4096", TypeError),
        ("max_context_length", None, TypeError),
        ("max_context_length", -1, ValueError),
        ("is_default", 1, TypeError),
        ("is_default", None, TypeError),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(argument: str, value: object, error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"id": "a", "base_model": "b", argument: value}
    with pytest.raises(error, match=f"^{argument} must be .*, not {value!r}$"):
        ModelEndpoint(**arguments)


def test_endpoints_compare_and_hash_by_value() -> None:
    assert dataclasses.replace(FULL) == FULL
    assert hash(FULL) == hash(dataclasses.replace(FULL))
    changes: dict[str, Any] = {
        "display_name": "x",
        "adapter": None,
        "max_context_length": 1,
        "status": "ready",
        "metadata": {},
    }
    for name in changes:
        assert dataclasses.replace(FULL, **{name: changes[name]}) != FULL


def test_a_copy_equals_its_original_and_keeps_its_status_identical() -> None:
    for twin in (copy.copy(FULL), copy.deepcopy(FULL), pickle.loads(pickle.dumps(FULL))):
        assert twin == FULL
        assert twin.status is EndpointStatus.LOADING


def test_an_endpoint_cannot_be_changed_or_given_more() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.status = EndpointStatus.READY  # type: ignore[misc]
    assert not hasattr(FULL, "__dict__")


def test_an_endpoint_is_shown_by_what_is_not_default_and_reads_back() -> None:
    assert repr(ModelEndpoint("a", "b")) == "ModelEndpoint('a', 'b')"
    assert repr(ModelEndpoint("a", "b", status="error")) == "ModelEndpoint('a', 'b', status='error')"
    assert eval(repr(FULL)) == FULL


def test_an_endpoint_matches_by_keyword() -> None:
    match FULL:
        case ModelEndpoint(id=ModelId(value=name), adapter=str(adapter), status=EndpointStatus.LOADING):
            assert (name, adapter) == ("bonsai-8b:code", "code")
        case _:
            pytest.fail("no match")


@dataclass(frozen=True, slots=True)
class PricedEndpoint(ModelEndpoint):
    price: float = 0.0


def priced(price: float, **fields: Any) -> PricedEndpoint:
    return PricedEndpoint("a", "b", price=price, **fields)  # type: ignore[arg-type]


class HousesEndpoint(ModelEndpoint):
    """A subclass that has no field of its own."""

    __slots__ = ()


def test_a_subclass_may_add_a_field() -> None:
    endpoint = priced(2.5, status="loading", metadata={"tags": ["vision"]})
    assert endpoint.id == ModelId("a")
    assert endpoint.display_name == "a"
    assert endpoint.status is EndpointStatus.LOADING
    assert "price=2.5" in repr(endpoint)
    assert endpoint == priced(2.5, status="loading", metadata={"tags": ["vision"]}) != priced(1)
    assert endpoint.metadata == {"tags": ("vision",)}
    changed = [
        endpoint.with_adapter("x"),
        endpoint.with_description("x"),
        endpoint.with_context_length(1),
        endpoint.set_default(),
        copy.deepcopy(endpoint),
        pickle.loads(pickle.dumps(endpoint)),
    ]
    assert all(type(each) is PricedEndpoint and each.price == 2.5 for each in changed)
    assert all(each.metadata == endpoint.metadata for each in changed)
    with pytest.raises(TypeError, match="max_context_length must be an int, not None"):
        priced(2.5, max_context_length=None)


@pytest.mark.parametrize(
    "endpoint",
    [priced(2.5, metadata={"a": 1}), HousesEndpoint("a", "b"), FULL],
    ids=lambda each: type(each).__name__,
)
def test_a_change_of_status_keeps_everything_else(endpoint: ModelEndpoint) -> None:
    registry = ModelRegistry()
    registry.register(endpoint)
    before = endpoint.status
    for status in EndpointStatus:
        registry.set_status(endpoint.id, status)
        changed = registry.resolve(endpoint.id)
        assert type(changed) is type(endpoint)
        assert changed == dataclasses.replace(endpoint, status=status)
    assert endpoint.status is before


def test_a_subclass_without_its_own_repr_shows_its_fields() -> None:
    assert repr(HousesEndpoint("a", "b", max_context_length=1)) == "HousesEndpoint('a', 'b', max_context_length=1)"

    @dataclass(frozen=True, slots=True, repr=False)
    class TaggedEndpoint(ModelEndpoint):
        tag: str = ""
        secret: str = field(default="", repr=False)

    assert repr(TaggedEndpoint(ModelId("a"), "b", tag="x", secret="y")).endswith("TaggedEndpoint('a', 'b', tag='x')")
    assert repr(TaggedEndpoint(ModelId("a"), "b")).endswith("TaggedEndpoint('a', 'b')")

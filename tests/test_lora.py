import copy
import math
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from lora_helpers import CODE, NEWER

from bonsai_routing import LoraAdapter, ModelId


def test_an_adapter_needs_a_name_a_base_and_a_source() -> None:
    adapter = LoraAdapter("code", "bonsai", "s3://adapters/code")
    assert (adapter.name, adapter.base_model, adapter.source) == ("code", "bonsai", "s3://adapters/code")
    assert (adapter.rank, adapter.scaling, adapter.max_context_length, adapter.trained_on) == (None,) * 4
    assert adapter.description == ""


def test_an_adapter_keeps_what_is_known_of_it() -> None:
    known: dict[str, object] = {
        "rank": 1,
        "scaling": -0.5,
        "description": "Rust",
        "max_context_length": 0,
        "trained_on": "q",
    }
    adapter = LoraAdapter("code", "bonsai", "", **known)  # type: ignore[arg-type]
    assert {key: getattr(adapter, key) for key in known} == known


def test_what_need_not_be_known_is_given_by_keyword() -> None:
    with pytest.raises(TypeError):
        LoraAdapter("code", "bonsai", "path", 8)  # type: ignore[call-arg]


def test_an_adapter_never_changes() -> None:
    with pytest.raises(FrozenInstanceError):
        CODE.source = "elsewhere"  # type: ignore[misc]
    assert len({CODE, replace(CODE), NEWER}) == 2


def test_a_copy_of_an_adapter_equals_it() -> None:
    assert pickle.loads(pickle.dumps(CODE)) == copy.deepcopy(CODE) == CODE


def test_an_adapters_id_is_base_colon_name() -> None:
    assert CODE.id == ModelId("bonsai:code")
    assert LoraAdapter("x:y", "a:b", "").id == ModelId("a:b:x:y")


@pytest.mark.parametrize("argument", ["name", "base_model", "source", "description"])
@pytest.mark.parametrize("value", [None, 5, b"code", Path("code"), ModelId("code")], ids=repr)
def test_what_must_be_text_is_checked(argument: str, value: object) -> None:
    with pytest.raises(TypeError) as caught:
        replace(CODE, **{argument: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{argument} must be a str, not {value!r}"


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name must not be empty"):
        LoraAdapter("", "bonsai", "")


@pytest.mark.parametrize("value", [5, b"q", ["q"]], ids=repr)
def test_the_weights_that_it_was_trained_on_are_text_or_unknown(value: object) -> None:
    with pytest.raises(TypeError) as caught:
        LoraAdapter("code", "bonsai", "", trained_on=value)  # type: ignore[arg-type]
    assert str(caught.value) == f"trained_on must be a str or None, not {value!r}"


@pytest.mark.parametrize("value", [0, -1, True, False, 8.0, "8", math.nan], ids=repr)
def test_a_rank_is_a_whole_number_of_one_or_more(value: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        LoraAdapter("code", "bonsai", "", rank=value)  # type: ignore[arg-type]
    assert "rank" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "2.0", 1j], ids=repr)
def test_a_scaling_is_a_finite_number(value: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        LoraAdapter("code", "bonsai", "", scaling=value)  # type: ignore[arg-type]
    assert "scaling" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_scaling_beyond_floating_point_is_no_finite_number() -> None:
    with pytest.raises(ValueError, match="scaling must be a finite number"):
        LoraAdapter("code", "bonsai", "", scaling=10**400)


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (True, TypeError), (8.0, TypeError), ("8", TypeError)])
def test_a_context_length_is_a_whole_number_of_tokens(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"max_context_length must be .*, not "):
        LoraAdapter("code", "bonsai", "", max_context_length=value)  # type: ignore[arg-type]

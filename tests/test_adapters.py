import copy
import math
import pickle
from dataclasses import FrozenInstanceError
from decimal import Decimal
from typing import Any

import pytest

from bonsai_routing import AdapterRef, AdapterStack


def weights(stack: AdapterStack) -> list[float]:
    return [ref.weight for ref in stack.adapters]


def test_a_new_stack_is_empty() -> None:
    stack = AdapterStack()
    assert stack.is_empty()
    assert len(stack) == 0
    assert stack.total_weight() == 0.0


def test_adding_returns_a_new_stack_and_keeps_the_order() -> None:
    one = AdapterStack().add("b", 0.5)
    two = one.add("a", 0.25).add("b", 1.0)
    assert [ref.name for ref in two.adapters] == ["b", "a", "b"]
    assert len(one) == 1
    assert not two.is_empty()


def test_stacks_share_no_list() -> None:
    refs = [AdapterRef("a", 1.0)]
    stack = AdapterStack(refs)
    refs.clear()
    assert len(stack) == 1
    assert AdapterStack().adapters is not AdapterStack().adapters


def test_weights_are_added_from_left_to_right() -> None:
    stack = AdapterStack().add("a", 1e16).add("b", 1.0).add("c", -1e16)
    assert stack.total_weight() == 0.0


def test_normalized_weights_add_up_to_one_in_place() -> None:
    stack = AdapterStack().add("a", 3).add("b", 1)
    kept = stack.adapters
    stack.normalize_weights()
    assert weights(stack) == [0.75, 0.25]
    assert stack.adapters is kept


def test_a_negative_total_turns_the_signs() -> None:
    stack = AdapterStack().add("a", -3.0).add("b", 1.0)
    stack.normalize_weights()
    assert weights(stack) == [1.5, -0.5]


@pytest.mark.parametrize("total", [0.0, 1.1920928e-07, -1.1920928e-07])
def test_a_total_below_epsilon_leaves_the_weights_alone(total: float) -> None:
    stack = AdapterStack().add("a", total)
    stack.normalize_weights()
    assert weights(stack) == [total]


@pytest.mark.parametrize("total", [2.0**-23, -(2.0**-23)])
def test_a_total_of_epsilon_is_enough(total: float) -> None:
    stack = AdapterStack().add("a", total)
    stack.normalize_weights()
    assert weights(stack) == [1.0]


def test_an_empty_stack_can_be_normalized() -> None:
    stack = AdapterStack()
    stack.normalize_weights()
    assert stack.is_empty()


def test_weights_that_would_grow_beyond_all_numbers_stay_as_they_are() -> None:
    stack = AdapterStack().add("a", 1e308).add("b", -1e308).add("c", 1e-6)
    before = copy.deepcopy(stack)
    with pytest.raises(ValueError, match="weight must be a finite number, not inf"):
        stack.normalize_weights()
    assert stack == before


def test_a_whole_number_becomes_a_float() -> None:
    assert type(AdapterRef("a", 1).weight) is float


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 10**400])
def test_a_weight_must_be_finite(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number, not "):
        AdapterStack().add("a", weight)


@pytest.mark.parametrize("weight", [None, "1", True, Decimal(1), 1j])
def test_a_weight_must_be_a_number(weight: Any) -> None:
    with pytest.raises(TypeError, match="weight must be a number, not "):
        AdapterRef("a", weight)


@pytest.mark.parametrize("name", [None, 1, b"a"])
def test_a_name_must_be_text(name: Any) -> None:
    with pytest.raises(TypeError, match=f"name must be a str, not {name!r}"):
        AdapterRef(name, 1.0)


def test_a_stack_holds_references_only() -> None:
    with pytest.raises(TypeError, match="adapters must hold AdapterRef objects, not 'a'"):
        AdapterStack(["a"])  # type: ignore[list-item]


def test_references_are_frozen_values() -> None:
    ref = AdapterRef("a", 0.5)
    assert {ref: 1}[AdapterRef("a", 0.5)] == 1
    assert ref != AdapterRef("a", 0.25)
    with pytest.raises(FrozenInstanceError):
        ref.weight = 1.0  # type: ignore[misc]
    for twin in (copy.copy(ref), copy.deepcopy(ref), pickle.loads(pickle.dumps(ref))):
        assert twin == ref


def test_stacks_compare_by_value_and_copy_deeply() -> None:
    stack = AdapterStack().add("a", 0.5)
    for twin in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert twin == stack
        twin.adapters.clear()
        assert len(stack) == 1
    assert stack != AdapterStack().add("a", 0.25)
    assert repr(stack) == "AdapterStack(adapters=[AdapterRef(name='a', weight=0.5)])"

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from bonsai_routing import (
    ContextTooLongError,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    NoModelsAvailableError,
    RoutingError,
)

EXAMPLES = [
    (ModelNotFoundError("it's"), "model 'it's' not found"),
    (ContextTooLongError("a", 9, 8), "model 'a' cannot handle context length 9 (max: 8)"),
    (NoModelsAvailableError(), "no models are currently available"),
    (ModelNotReadyError("a", "loading"), "model 'a' is not ready (status: loading)"),
]
each_error = pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=lambda value: type(value).__name__)


@each_error
def test_the_text_is_the_references(error: RoutingError, text: str) -> None:
    assert str(error) == text


@each_error
def test_a_copy_has_the_same_facts(error: RoutingError, text: str) -> None:
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert str(twin) == text


@each_error
def test_an_error_made_with_keywords_is_copied_and_pickled_too(error: RoutingError, text: str) -> None:
    made = type(error)(**vars(error))
    for twin in (copy.copy(made), pickle.loads(pickle.dumps(made))):
        assert vars(twin) == vars(error)
        assert twin.args == error.args
        assert str(twin) == text


@each_error
def test_the_arguments_are_the_facts_in_order(error: RoutingError, text: str) -> None:
    assert error.args == tuple(vars(error).values())


@each_error
def test_one_base_catches_every_kind(error: RoutingError, text: str) -> None:
    assert isinstance(error, RoutingError)
    assert len({error, error}) == 1


def test_the_built_in_bases_fit_what_callers_catch_already() -> None:
    assert issubclass(ModelNotFoundError, LookupError)
    assert issubclass(ContextTooLongError, ValueError)


def test_errors_match_by_keyword() -> None:
    match ContextTooLongError("a", 9, 8):
        case ContextTooLongError(model="a", required=required, available=8):
            assert required == 9
        case _:
            pytest.fail("no match")


def route_elsewhere(model: str) -> None:
    ModelRouter(ModelRegistry()).route(model)


def test_an_error_comes_back_from_another_process() -> None:
    with ProcessPoolExecutor(max_workers=1) as pool, pytest.raises(ModelNotFoundError) as caught:
        pool.submit(route_elsewhere, "gone").result()
    assert caught.value.model == "gone"

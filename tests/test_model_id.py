import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest

from bonsai_routing import ModelId


def test_an_id_without_a_colon_is_a_base_model() -> None:
    assert ModelId("bonsai-8b").is_base()
    assert ModelId("bonsai-8b").adapter_name() is None


def test_what_follows_the_first_colon_is_the_adapter() -> None:
    assert not ModelId("bonsai-8b:code:v2").is_base()
    assert ModelId("bonsai-8b:code:v2").adapter_name() == "code:v2"


def test_a_colon_at_the_end_names_the_empty_adapter() -> None:
    assert not ModelId("bonsai-8b:").is_base()
    assert ModelId("bonsai-8b:").adapter_name() == ""


def test_a_colon_at_the_start_leaves_the_base_empty() -> None:
    assert ModelId(":code").adapter_name() == "code"


def test_the_empty_text_is_an_id() -> None:
    assert ModelId("").is_base()
    assert str(ModelId("")) == ""


def test_its_text_is_given_back_unchanged() -> None:
    text = "🌳:e\u0301 \t"
    assert str(ModelId(text)) == ModelId(text).as_str() == ModelId(text).value == text


def test_an_id_equals_its_text_and_hashes_like_it() -> None:
    assert ModelId("a") == ModelId("a") == "a" == ModelId("a")
    assert hash(ModelId("a")) == hash("a")
    assert ModelId("a") not in (ModelId("A"), "A", 1, None)
    assert (ModelId("a") != "a") is False
    assert {ModelId("a"): 1}["a"] == {"a": 1}[ModelId("a")] == 1  # type: ignore[index]


def test_an_id_is_shown_by_its_text() -> None:
    assert repr(ModelId("it's")) == 'ModelId("it\'s")'


def test_an_id_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        ModelId("a").value = "b"  # type: ignore[misc]


def test_a_copy_equals_its_original() -> None:
    model_id = ModelId("bonsai-8b:code")
    for twin in (copy.copy(model_id), copy.deepcopy(model_id), pickle.loads(pickle.dumps(model_id))):
        assert twin == model_id


@pytest.mark.parametrize("value", [None, 8, b"bonsai-8b", ModelId("bonsai-8b")])
def test_only_text_makes_an_id(value: object) -> None:
    with pytest.raises(TypeError, match="value must be a str, not "):
        ModelId(value)  # type: ignore[arg-type]

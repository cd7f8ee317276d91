import asyncio
import copy
import gc
import json
import math
import pickle
import random
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import pytest
from instructions import stopped_at_each_instruction

from bonsai_routing import (
    AdapterBaseError,
    AdapterConfigError,
    AdapterLoadedError,
    AdapterRegistry,
    AdapterStack,
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelId,
    ModelNotFoundError,
    ModelNotReadyError,
    ModelRegistry,
    ModelRouter,
    RoutingError,
    StackLease,
    StaleGenerationError,
)

DATA = Path(__file__).parent / "data" / "peft"
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "qwen3-8b"}
MLX = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}

BASE = ModelEndpoint("bonsai", "qwen3-8b", max_context_length=32768)
OTHER = ModelEndpoint("llama", "llama-3", max_context_length=8192)
CODE = LoraAdapter("code", "bonsai", "adapters/code")
NEWER = LoraAdapter("code", "bonsai", "adapters/code-2")
MATH = LoraAdapter("math", "bonsai", "adapters/math")
LAW = LoraAdapter("law", "llama", "adapters/law")
PLAIN = ModelEndpoint("bonsai:code", "plain")

NOT_READY = [status for status in EndpointStatus if not status.is_available()]


@pytest.fixture
def models() -> ModelRegistry:
    registry = ModelRegistry()
    registry.register(BASE)
    registry.register(OTHER)
    registry.add_alias("chat", "bonsai")
    return registry


@pytest.fixture
def adapters(models: ModelRegistry) -> AdapterRegistry:
    return AdapterRegistry(models)


def state(models: ModelRegistry) -> object:
    """Return all that can be seen of a registry and the adapters in it."""
    return (
        [(endpoint, models.generation(endpoint.id), models.in_flight(endpoint.id)) for endpoint in models],
        [(each.endpoint, each.generation, each.leases) for each in models.draining()],
        list(AdapterRegistry(models)),
        models.default_endpoint(),
    )


def in_flight(models: ModelRegistry) -> dict[str, int]:
    """Return the numbers of leases, where there are any."""
    leases = {str(endpoint.id): models.in_flight(endpoint.id) for endpoint in models}
    return {id: count for id, count in leases.items() if count}


def generation(models: ModelRegistry, id: ModelId | str) -> int:
    number = models.generation(id)
    assert number is not None
    return number


def stack_of(*names: str) -> AdapterStack:
    stack = AdapterStack()
    for name in names:
        stack = stack.add(name, 1.0)
    return stack


# What an adapter is.


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


@pytest.mark.parametrize(
    "function",
    [LoraAdapter, LoraAdapter.from_peft, AdapterRegistry.swap, AdapterRegistry.loading, AdapterRegistry.lease_stack],
)
def test_annotations_can_be_evaluated(function: object) -> None:
    assert typing.get_type_hints(function)


# What PEFT saves.


def saved(directory: Path, config: object = None, **keys: object) -> Path:
    """Return *directory* with a configuration of PEFT's in it: that of a plain LoRA but for *keys*."""
    directory.mkdir(exist_ok=True)
    text = json.dumps({**PEFT, **keys} if config is None else config)
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    return directory


def refused(directory: Path) -> AdapterConfigError:
    """Return the error that reading *directory* ends with, once its facts are seen to survive a pickle."""
    with pytest.raises(AdapterConfigError) as caught:
        LoraAdapter.from_peft(directory, base_model="bonsai")
    error = caught.value
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), vars(twin), str(twin)) == (AdapterConfigError, vars(error), str(error))
    assert error.path == str(directory / "adapter_config.json")
    assert str(error).startswith(error.path)
    assert str(error).endswith(error.rule)
    assert error.key is None or f" {error.key} " in str(error)
    return error


@pytest.mark.parametrize(
    ("name", "rank", "scaling", "trained_on"),
    [
        ("code", 8, 2.0, "qwen3-8b"),
        ("chat-rslora", 16, 8.0, "qwen3-8b"),
        ("law-rank-pattern", 32, 1.0, "Qwen/Qwen3-8B"),
        ("math-dora", 4, 2.0, "qwen3-8b"),
    ],
)
def test_what_peft_saved_is_read_as_peft_reads_it(name: str, rank: int, scaling: float, trained_on: str) -> None:
    adapter = LoraAdapter.from_peft(DATA / name, base_model="bonsai")
    assert adapter == LoraAdapter(name, "bonsai", str(DATA / name), rank=rank, scaling=scaling, trained_on=trained_on)


def test_what_peft_saved_of_another_kind_is_refused() -> None:
    error = refused(DATA / "ia3")
    assert (error.key, error.rule) == ("peft_type", "must be 'LORA', not 'IA3'")


def test_what_peft_saved_fits_the_base_that_it_names(adapters: AdapterRegistry) -> None:
    for name in ("code", "chat-rslora", "law-rank-pattern", "math-dora"):
        adapters.load(LoraAdapter.from_peft(DATA / name, base_model="bonsai"))
        with pytest.raises(AdapterBaseError):
            adapters.load(LoraAdapter.from_peft(DATA / name, base_model="llama"))
    assert len(adapters) == 4


def test_a_name_may_be_given(tmp_path: Path) -> None:
    adapter = LoraAdapter.from_peft(saved(tmp_path), base_model="bonsai", name="rust")
    assert (adapter.name, adapter.source) == ("rust", str(tmp_path))


@pytest.mark.parametrize("end", ["", "/", "//", "/.", "/../rust"])
def test_the_name_is_that_of_the_directory_however_its_path_ends(tmp_path: Path, end: str) -> None:
    directory = f"{saved(tmp_path / 'rust')}{end}"
    adapter = LoraAdapter.from_peft(directory, base_model="bonsai")
    assert (adapter.name, adapter.source) == ("rust", directory)


def test_the_current_directory_has_a_name_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved(tmp_path / "rust"))
    assert LoraAdapter.from_peft(".", base_model="bonsai").name == "rust"


def test_the_directory_may_be_a_path_object(tmp_path: Path) -> None:
    directory = saved(tmp_path / "rust")
    assert LoraAdapter.from_peft(directory, base_model="bonsai") == LoraAdapter.from_peft(
        str(directory), base_model="bonsai"
    )


def test_the_base_may_be_a_model_id(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path), base_model=ModelId("bonsai"), name="code").base_model == "bonsai"


def test_the_base_must_be_a_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="base_model must be a str or a ModelId, not 5"):
        LoraAdapter.from_peft(saved(tmp_path), base_model=5)  # type: ignore[arg-type]


def test_an_empty_name_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must not be empty"):
        LoraAdapter.from_peft(saved(tmp_path), base_model="bonsai", name="")


@pytest.mark.parametrize("directory", [5, None], ids=repr)
def test_the_directory_must_be_a_path(directory: object) -> None:
    with pytest.raises(TypeError):
        LoraAdapter.from_peft(directory, base_model="bonsai")  # type: ignore[arg-type]


def test_a_base_that_peft_did_not_know_is_unknown(tmp_path: Path) -> None:
    directory = saved(tmp_path, base_model_name_or_path=None)
    assert LoraAdapter.from_peft(directory, base_model="bonsai").trained_on is None


def test_an_alpha_may_be_a_fraction(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, lora_alpha=0.5), base_model="bonsai").scaling == 0.0625


def test_a_pattern_of_smaller_ranks_leaves_the_largest(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, rank_pattern={"q": 4, "v": 2}), base_model="bonsai").rank == 8


def test_the_scaling_is_by_the_rank_and_not_by_the_pattern(tmp_path: Path) -> None:
    adapter = LoraAdapter.from_peft(saved(tmp_path, rank_pattern={"q": 64}, use_rslora=True), base_model="bonsai")
    assert (adapter.rank, adapter.scaling) == (64, 16 / math.sqrt(8))


def test_old_files_know_nothing_of_patterns_and_stabilisation(tmp_path: Path) -> None:
    adapter = LoraAdapter.from_peft(saved(tmp_path), base_model="bonsai")
    assert (adapter.rank, adapter.scaling) == (8, 2.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert (error.key, error.rule) == (None, "the file does not exist")


def test_a_missing_directory_is_a_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").rule == "the file does not exist"


def test_a_directory_in_the_files_place_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").mkdir()
    error = refused(tmp_path)
    assert error.key is None
    assert error.rule.startswith("the file cannot be read: ")


def test_a_file_in_the_directorys_place_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file").key is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'r': 8}",
        b"{} {}",
        json.dumps(PEFT).encode("utf-16"),
        b'{"peft_type": "\xff"}',
        b"[" * 100_000,
        b'{"peft_type":' * 100_000,
        b'{"r": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "quotes", "two", "utf-16", "latin-1", "deep-list", "deep-object", "long-number"],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    error = refused(tmp_path)
    assert error.key is None
    assert error.rule.startswith("the file is not JSON: ")


@pytest.mark.parametrize("config", [[PEFT], "LORA", 8, True, [], "", 0], ids=repr)
def test_json_that_is_no_object_is_refused(tmp_path: Path, config: object) -> None:
    error = refused(saved(tmp_path, config))
    assert error.key is None
    assert error.rule.startswith("the file must hold a JSON object, not ")


def test_json_null_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("null", encoding="utf-8")
    assert refused(tmp_path).rule == "the file must hold a JSON object, not None"


@pytest.mark.parametrize("key", PEFT)
def test_each_key_that_is_needed_is_missed(tmp_path: Path, key: str) -> None:
    error = refused(saved(tmp_path, {each: value for each, value in PEFT.items() if each != key}))
    assert (error.key, error.rule) == (key, "is missing")


def test_an_empty_object_is_no_file_of_mlx() -> None:
    # Nothing says who wrote it.
    assert "mlx" not in str(AdapterConfigError("file", "peft_type", "is missing"))


@pytest.mark.parametrize("keys", [MLX.keys(), ["fine_tune_type"], ["lora_parameters"]], ids=list)
def test_the_file_of_mlx_is_known_for_what_it_is(tmp_path: Path, keys: list[str]) -> None:
    error = refused(saved(tmp_path, {key: MLX[key] for key in keys}))
    assert (error.key, error.rule) == ("peft_type", "is missing: the file was written by mlx-lm, not by PEFT")


def test_keys_of_mlx_do_not_matter_in_a_file_of_peft(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, **MLX), base_model="bonsai").rank == 8


@pytest.mark.parametrize("kind", ["IA3", "lora", "", None, ["LORA"], True], ids=repr)
def test_another_type_than_lora_is_refused(tmp_path: Path, kind: object) -> None:
    error = refused(saved(tmp_path, peft_type=kind))
    assert (error.key, error.rule) == ("peft_type", f"must be 'LORA', not {kind!r}")


@pytest.mark.parametrize("value", [0, -8, True, False, 8.0, "8", None, [8], math.nan], ids=repr)
def test_a_saved_rank_is_a_whole_number_of_one_or_more(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, r=value))
    assert (error.key, error.rule) == ("r", f"must be a whole number of 1 or more, not {value!r}")


@pytest.mark.parametrize("keys", [{"lora_alpha": 1.5}, {"use_rslora": True}], ids=repr)
def test_a_saved_rank_beyond_floating_point_is_refused(tmp_path: Path, keys: dict[str, object]) -> None:
    assert refused(saved(tmp_path, r=10**400, **keys)).key == "r"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "16", None, [16]], ids=repr)
def test_a_saved_alpha_is_a_finite_number(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, lora_alpha=value))
    assert (error.key, error.rule) == ("lora_alpha", f"must be a finite number, not {value!r}")


def test_a_saved_alpha_beyond_floating_point_is_no_finite_number(tmp_path: Path) -> None:
    assert refused(saved(tmp_path, lora_alpha=10**400)).key == "lora_alpha"


@pytest.mark.parametrize("value", [1, 0, "true", None, [True]], ids=repr)
def test_saved_stabilisation_is_true_or_false(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, use_rslora=value))
    assert (error.key, error.rule) == ("use_rslora", f"must be true or false, not {value!r}")


@pytest.mark.parametrize(
    "value",
    [{"q": 0}, {"q": 8, "v": -1}, {"q": True}, {"q": 8.0}, {"q": None}, {"q": {"v": 8}}, ["q"], "q", 8, True],
    ids=repr,
)
def test_a_saved_pattern_maps_layers_to_ranks(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, rank_pattern=value))
    assert (error.key, error.rule) == (
        "rank_pattern",
        f"must map layers to whole numbers of 1 or more, not {value!r}",
    )


@pytest.mark.parametrize("value", [[], "", 0, False], ids=repr)
def test_what_is_empty_and_no_object_is_no_pattern(tmp_path: Path, value: object) -> None:
    assert refused(saved(tmp_path, rank_pattern=value)).key == "rank_pattern"


@pytest.mark.parametrize("value", [5, True, ["qwen3-8b"], {}], ids=repr)
def test_a_saved_base_is_text_or_null(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, base_model_name_or_path=value))
    assert (error.key, error.rule) == ("base_model_name_or_path", f"must be text or null, not {value!r}")


# What every way of publishing an adapter refuses.


def load(adapters: AdapterRegistry, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint | None:
    adapters.load(adapter, check_base=check_base)
    return adapters.models.resolve(adapter.id)


def swap(adapters: AdapterRegistry, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint | None:
    adapters.swap(adapter, check_base=check_base)
    return adapters.models.resolve(adapter.id)


def loading(adapters: AdapterRegistry, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint | None:
    with adapters.loading(adapter, check_base=check_base):
        pass
    return adapters.models.resolve(adapter.id)


Publish = Callable[..., ModelEndpoint | None]
each_way = pytest.mark.parametrize("publish", [load, swap, loading])


@each_way
def test_an_adapter_inherits_weights_and_context_length(adapters: AdapterRegistry, publish: Publish) -> None:
    endpoint = publish(adapters, replace(CODE, description="Rust"))
    assert endpoint == ModelEndpoint(
        "bonsai:code", "qwen3-8b", adapter="code", description="Rust", max_context_length=32768
    )
    assert endpoint is not None
    assert not endpoint.is_default
    assert endpoint.status is EndpointStatus.READY


@each_way
@pytest.mark.parametrize("limit", [0, 4096, 32768])
def test_a_context_up_to_the_bases_is_kept(adapters: AdapterRegistry, publish: Publish, limit: int) -> None:
    endpoint = publish(adapters, replace(CODE, max_context_length=limit))
    assert endpoint is not None
    assert endpoint.max_context_length == limit


@each_way
def test_a_context_longer_than_the_bases_is_refused(adapters: AdapterRegistry, publish: Publish) -> None:
    before = state(adapters.models)
    with pytest.raises(AdapterBaseError) as caught:
        publish(adapters, replace(CODE, max_context_length=32769), check_base=False)
    error = caught.value
    assert (error.adapter, error.base_model) == ("code", "bonsai")
    assert error.rule == "its context of 32769 tokens is longer than the base's 32768"
    assert state(adapters.models) == before


@each_way
def test_a_base_that_is_not_registered_is_refused(adapters: AdapterRegistry, publish: Publish) -> None:
    before = state(adapters.models)
    with pytest.raises(ModelNotFoundError) as caught:
        publish(adapters, replace(CODE, base_model="gone"), check_base=False)
    assert caught.value.model == "gone"
    assert state(adapters.models) == before


@each_way
def test_an_alias_is_no_base(adapters: AdapterRegistry, publish: Publish) -> None:
    before = state(adapters.models)
    with pytest.raises(ModelNotFoundError) as caught:
        publish(adapters, replace(CODE, base_model="chat"))
    assert caught.value.model == "chat"
    assert state(adapters.models) == before


@each_way
def test_an_adapter_is_no_base(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.load(CODE)
    before = state(adapters.models)
    with pytest.raises(AdapterBaseError) as caught:
        publish(adapters, LoraAdapter("math", "bonsai:code", ""), check_base=False)
    error = caught.value
    assert (error.adapter, error.base_model) == ("math", "bonsai:code")
    assert error.rule == "that is an adapter's endpoint, not a base"
    assert state(adapters.models) == before


@each_way
def test_an_adapters_endpoint_that_was_registered_by_hand_is_no_base(
    adapters: AdapterRegistry, publish: Publish
) -> None:
    # An empty adapter name is one as well.
    adapters.models.register(ModelEndpoint("by-hand", "qwen3-8b", adapter=""))
    with pytest.raises(AdapterBaseError):
        publish(adapters, replace(CODE, base_model="by-hand"))


@each_way
def test_a_base_may_have_a_colon_in_its_id(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(ModelEndpoint("bonsai:8b", "qwen3-8b"))
    endpoint = publish(adapters, replace(CODE, base_model="bonsai:8b"))
    assert endpoint is not None
    assert endpoint.id == ModelId("bonsai:8b:code")
    assert adapters.of("bonsai") == []


@each_way
@pytest.mark.parametrize("status", NOT_READY)
def test_a_base_need_not_be_ready(adapters: AdapterRegistry, publish: Publish, status: EndpointStatus) -> None:
    adapters.models.set_status("bonsai", status)
    endpoint = publish(adapters, CODE)
    assert endpoint is not None
    assert endpoint.status is EndpointStatus.READY


@each_way
@pytest.mark.parametrize(
    "trained_on",
    [None, "qwen3-8b", "QWEN3-8B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B/", "/models/qwen3-8b", "hf://Qwen/Qwen3-8B//"],
)
def test_an_adapter_of_the_same_weights_fits(
    adapters: AdapterRegistry, publish: Publish, trained_on: str | None
) -> None:
    assert publish(adapters, replace(CODE, trained_on=trained_on)) is not None


@each_way
def test_the_weights_of_the_base_may_be_a_path_too(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(ModelEndpoint("bonsai", "/models/Qwen3-8B/"))
    assert publish(adapters, replace(CODE, trained_on="qwen3-8b")) is not None


@each_way
def test_the_full_text_is_compared_first(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(ModelEndpoint("bonsai", ""))
    assert publish(adapters, replace(CODE, trained_on="")) is not None


@each_way
@pytest.mark.parametrize("trained_on", ["qwen3", "qwen3-8b-base", "qwen3-8b/lora", "llama-3", "", "qwen3-8b:code"])
def test_an_adapter_of_other_weights_is_refused(adapters: AdapterRegistry, publish: Publish, trained_on: str) -> None:
    before = state(adapters.models)
    with pytest.raises(AdapterBaseError) as caught:
        publish(adapters, replace(CODE, trained_on=trained_on))
    error = caught.value
    assert (error.adapter, error.base_model) == ("code", "bonsai")
    assert error.rule == f"it was trained on '{trained_on}', and the base serves 'qwen3-8b'"
    assert state(adapters.models) == before


@each_way
def test_an_adapter_of_other_weights_is_let_in_on_demand(adapters: AdapterRegistry, publish: Publish) -> None:
    assert publish(adapters, replace(CODE, trained_on="llama-3"), check_base=False) is not None


@each_way
@pytest.mark.parametrize("adapter", [BASE, "code", None], ids=repr)
def test_only_adapters_are_published(adapters: AdapterRegistry, publish: Publish, adapter: object) -> None:
    before = state(adapters.models)
    with pytest.raises(TypeError) as caught:
        publish(adapters, adapter)
    assert str(caught.value) == f"adapter must be a LoraAdapter, not {adapter!r}"
    assert state(adapters.models) == before


# Loading.


def test_loading_returns_what_it_has_published(adapters: AdapterRegistry) -> None:
    endpoint = adapters.load(CODE)
    assert adapters.models.resolve("bonsai:code") is endpoint
    assert adapters.get("bonsai:code") is CODE
    assert ModelRouter(adapters.models).route("bonsai:code") is endpoint


def test_an_adapter_is_loaded_once(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    before = state(adapters.models)
    with pytest.raises(AdapterLoadedError) as caught:
        adapters.load(NEWER)
    assert caught.value.model == "bonsai:code"
    assert state(adapters.models) == before


@pytest.mark.parametrize("status", NOT_READY)
def test_an_adapter_that_is_not_ready_has_its_name_too(adapters: AdapterRegistry, status: EndpointStatus) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", status)
    with pytest.raises(AdapterLoadedError):
        adapters.load(NEWER)


def test_an_adapter_does_not_load_over_another_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)
    before = state(adapters.models)
    with pytest.raises(AdapterLoadedError) as caught:
        adapters.load(CODE)
    assert caught.value.model == "bonsai:code"
    assert state(adapters.models) == before


def test_an_alias_of_the_same_name_is_hidden_by_the_adapter(adapters: AdapterRegistry) -> None:
    adapters.models.add_alias("bonsai:code", "llama")
    endpoint = adapters.load(CODE)
    assert adapters.models.resolve("bonsai:code") is endpoint


def test_one_name_can_be_loaded_on_several_bases(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.load(replace(CODE, base_model="llama"))
    assert [str(each.id) for each in adapters] == ["bonsai:code", "llama:code"]


# Replacing.


def test_swapping_in_what_is_not_there_loads_it(adapters: AdapterRegistry) -> None:
    assert adapters.swap(CODE).result(timeout=0) is None
    assert adapters.get("bonsai:code") is CODE


def test_swapping_an_idle_adapter_completes_at_once(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    assert adapters.swap(NEWER).result(timeout=0) is old
    assert adapters.get("bonsai:code") is NEWER


def test_swapping_the_same_adapter_is_a_new_publication(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    before = generation(adapters.models, CODE.id)
    adapters.swap(CODE)
    assert generation(adapters.models, CODE.id) != before


def test_swapping_waits_for_the_last_lease_of_the_old(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    first, second = (ModelRouter(adapters.models).lease("bonsai:code") for _ in range(2))
    gone = adapters.swap(NEWER)
    with ModelRouter(adapters.models).lease("bonsai:code") as newer:
        assert newer.generation == generation(adapters.models, CODE.id) != first.generation
        first.release()
        assert not gone.done()
        second.release()
        assert gone.result(timeout=0) is old


def test_swapping_takes_the_place_of_any_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)
    assert adapters.swap(CODE).result(timeout=0) is PLAIN
    assert list(adapters) == [CODE]


def test_swapping_makes_ready_what_had_failed(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", "error")
    adapters.swap(NEWER)
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY


def test_swapping_expects_the_present_generation(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    assert adapters.swap(NEWER, expect=generation(adapters.models, CODE.id)).result(timeout=0) is old
    assert list(adapters) == [NEWER]


def test_swapping_with_a_stale_generation_changes_nothing(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    stale = generation(adapters.models, CODE.id)
    adapters.swap(NEWER)
    before = state(adapters.models)
    with pytest.raises(StaleGenerationError) as caught:
        adapters.swap(CODE, expect=stale)
    error = caught.value
    assert (error.model, error.expected, error.present) == ("bonsai:code", stale, stale + 1)
    assert state(adapters.models) == before


def test_swapping_expects_in_vain_what_is_gone(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    stale = generation(adapters.models, CODE.id)
    adapters.unload(CODE.id)
    before = state(adapters.models)
    with pytest.raises(StaleGenerationError) as caught:
        adapters.swap(CODE, expect=stale)
    assert (caught.value.expected, caught.value.present) == (stale, None)
    assert state(adapters.models) == before


def test_a_change_of_status_is_no_change_of_generation(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    adapters.models.set_status("bonsai:code", "error")
    adapters.swap(NEWER, expect=known)
    assert list(adapters) == [NEWER]


def test_zero_is_a_generation_that_nothing_has(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    with pytest.raises(StaleGenerationError):
        adapters.swap(NEWER, expect=0)


def test_a_swap_that_is_refused_leaves_the_old_adapter(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    with ModelRouter(adapters.models).lease("bonsai:code"):
        before = state(adapters.models)
        with pytest.raises(AdapterBaseError):
            adapters.swap(replace(NEWER, trained_on="llama-3"))
        assert state(adapters.models) == before


@each_way
def test_an_adapter_that_is_the_default_stays_it(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.register(replace(PLAIN, is_default=True))
    if publish is load:
        # What was removed is not the default any more, so there is nothing to keep.
        adapters.models.unregister(PLAIN.id)
    endpoint = publish(adapters, CODE)
    assert adapters.models.default_endpoint() is (None if publish is load else endpoint)


@each_way
def test_aliases_lead_to_the_new_adapter(adapters: AdapterRegistry, publish: Publish) -> None:
    adapters.models.add_alias("coder", "bonsai:code")
    endpoint = publish(adapters, CODE)
    assert adapters.models.resolve("coder") is endpoint


# Unloading.


@pytest.mark.parametrize("id", ["bonsai:code", ModelId("bonsai:code")], ids=repr)
def test_unloading_removes_the_endpoint(adapters: AdapterRegistry, id: ModelId | str) -> None:
    old = adapters.load(CODE)
    assert adapters.unload(id).result(timeout=0) is old
    assert adapters.models.resolve("bonsai:code") is None
    assert list(adapters) == []


def test_unloading_waits_for_the_last_lease(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    with ModelRouter(adapters.models).lease("bonsai:code"):
        gone = adapters.unload("bonsai:code")
        assert not gone.done()
        assert list(adapters) == []
    assert gone.result(timeout=0) is old


@pytest.mark.parametrize("id", ["bonsai:gone", "bonsai", "code", "coder", "bonsai:plain", ""])
def test_unloading_what_is_no_adapters_id_does_nothing(adapters: AdapterRegistry, id: str) -> None:
    adapters.load(CODE)
    adapters.models.add_alias("coder", "bonsai:code")
    adapters.models.register(ModelEndpoint("bonsai:plain", "qwen3-8b", adapter="plain"))
    before = state(adapters.models)
    assert adapters.unload(id).result(timeout=0) is None
    assert state(adapters.models) == before


def test_unloading_the_default_leaves_none(adapters: AdapterRegistry) -> None:
    adapters.models.register(replace(PLAIN, is_default=True))
    adapters.swap(CODE)
    adapters.unload(CODE.id)
    assert adapters.models.default_endpoint() is None


def test_what_was_unloaded_can_be_loaded_again(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    before = generation(adapters.models, CODE.id)
    adapters.unload(CODE.id)
    adapters.load(CODE)
    assert generation(adapters.models, CODE.id) > before


# Loading in a block.


def test_an_adapter_is_loading_until_the_block_ends(adapters: AdapterRegistry) -> None:
    with adapters.loading(CODE) as endpoint:
        assert endpoint.status is EndpointStatus.LOADING
        assert adapters.models.resolve("bonsai:code") is endpoint
        assert adapters.get("bonsai:code") is CODE
        known = generation(adapters.models, CODE.id)
        with pytest.raises(ModelNotReadyError):
            ModelRouter(adapters.models).route("bonsai:code")
    assert ModelRouter(adapters.models).route("bonsai:code") == replace(endpoint, status=EndpointStatus("ready"))
    assert generation(adapters.models, CODE.id) == known
    assert list(adapters) == [CODE]


def test_nothing_is_published_before_the_block_begins(adapters: AdapterRegistry) -> None:
    adapters.loading(CODE)
    assert list(adapters) == []


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("no"),
        ModelNotFoundError("x"),
        StopIteration("no"),
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("serving", [False, True], ids=["new", "serving"])
def test_whatever_the_block_raises_goes_through(
    adapters: AdapterRegistry, failure: BaseException, serving: bool
) -> None:
    if serving:
        adapters.load(CODE)
    before = state(adapters.models)
    with pytest.raises(type(failure)) as caught, adapters.loading(NEWER):
        raise failure
    assert caught.value is failure
    if serving:
        assert state(adapters.models) == before
    else:
        endpoint = adapters.models.resolve("bonsai:code")
        assert endpoint is not None
        assert endpoint.status is EndpointStatus.ERROR
        assert list(adapters) == [NEWER]


def test_an_exception_is_not_chained_to_anything(adapters: AdapterRegistry) -> None:
    with pytest.raises(ValueError, match="no") as caught, adapters.loading(CODE):
        raise ValueError("no")
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_what_failed_to_load_can_be_tried_again(adapters: AdapterRegistry) -> None:
    with suppress(ValueError), adapters.loading(CODE):
        raise ValueError
    failed = generation(adapters.models, CODE.id)
    with adapters.loading(NEWER) as endpoint:
        assert adapters.models.resolve("bonsai:code") is endpoint
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY
    assert generation(adapters.models, CODE.id) > failed
    assert list(adapters) == [NEWER]


@pytest.mark.parametrize("status", NOT_READY)
def test_what_serves_nothing_is_replaced_at_once(adapters: AdapterRegistry, status: EndpointStatus) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", status)
    with adapters.loading(NEWER) as endpoint:
        assert adapters.models.resolve("bonsai:code") is endpoint
        assert list(adapters) == [NEWER]


def test_the_old_adapter_serves_until_the_new_one_is_there(adapters: AdapterRegistry) -> None:
    old = adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    with ModelRouter(adapters.models).lease("bonsai:code") as lease:
        with adapters.loading(NEWER) as endpoint:
            assert endpoint.status is EndpointStatus.LOADING
            assert ModelRouter(adapters.models).route("bonsai:code") is old is lease.endpoint
            assert generation(adapters.models, CODE.id) == known
            assert list(adapters) == [CODE]
            assert adapters.models.draining() == []
        assert ModelRouter(adapters.models).route("bonsai:code") == replace(endpoint, status=EndpointStatus("ready"))
        assert generation(adapters.models, CODE.id) > known
        assert list(adapters) == [NEWER]
        assert [each.endpoint for each in adapters.models.draining()] == [old]
    assert adapters.models.draining() == []


def test_a_plain_endpoint_serves_until_the_adapter_is_there(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)
    with adapters.loading(CODE):
        assert adapters.models.resolve("bonsai:code") is PLAIN
        assert list(adapters) == []
    assert list(adapters) == [CODE]


def test_the_base_is_looked_at_again_before_a_serving_adapter_is_replaced(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    loading_newer = adapters.loading(replace(NEWER, trained_on="qwen3-8b"))
    with pytest.raises(AdapterBaseError), loading_newer:
        adapters.models.register(ModelEndpoint("bonsai", "llama-3"))
    assert list(adapters) == [CODE]


def test_the_default_stays_with_an_adapter_that_is_loading(adapters: AdapterRegistry) -> None:
    adapters.models.register(replace(PLAIN, is_default=True, status=EndpointStatus("error")))
    with adapters.loading(CODE) as endpoint:
        assert adapters.models.default_endpoint() is endpoint
    assert adapters.models.default_endpoint() == replace(endpoint, status=EndpointStatus("ready"))


def replace_by_a_plain_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.register(PLAIN)


def replace_by_its_own_endpoint(adapters: AdapterRegistry) -> None:
    endpoint = adapters.models.resolve("bonsai:code")
    assert endpoint is not None
    adapters.models.register(endpoint)


def swap_for_a_plain_endpoint(adapters: AdapterRegistry) -> None:
    adapters.models.swap(PLAIN)


def unregister(adapters: AdapterRegistry) -> None:
    adapters.models.unregister("bonsai:code")


def retire(adapters: AdapterRegistry) -> None:
    adapters.models.retire("bonsai:code")


def replace_everything_by_nothing(adapters: AdapterRegistry) -> None:
    adapters.models.replace_with(ModelRegistry())


def replace_everything_by_plain_endpoints(adapters: AdapterRegistry) -> None:
    other = ModelRegistry()
    for endpoint in adapters.models:
        other.register(endpoint)
    adapters.models.replace_with(other)


def unload_elsewhere(adapters: AdapterRegistry) -> None:
    AdapterRegistry(adapters.models).unload("bonsai:code")


def swap_elsewhere(adapters: AdapterRegistry) -> None:
    AdapterRegistry(adapters.models).swap(replace(CODE, source="elsewhere"))


def load_elsewhere(adapters: AdapterRegistry) -> None:
    adapters.unload("bonsai:code")
    AdapterRegistry(adapters.models).load(replace(CODE, source="elsewhere"))


REMOVALS = [
    replace_by_a_plain_endpoint,
    replace_by_its_own_endpoint,
    swap_for_a_plain_endpoint,
    unregister,
    retire,
    replace_everything_by_nothing,
    replace_everything_by_plain_endpoints,
    unload_elsewhere,
]
each_removal = pytest.mark.parametrize("remove", REMOVALS)
each_interference = pytest.mark.parametrize("interfere", [*REMOVALS, swap_elsewhere, load_elsewhere])
each_start = pytest.mark.parametrize("serving", [False, True], ids=["new", "serving"])


@each_interference
@each_start
def test_what_was_replaced_or_removed_while_it_loaded_is_left_alone(
    adapters: AdapterRegistry, serving: bool, interfere: Callable[[AdapterRegistry], None]
) -> None:
    if serving:
        adapters.load(CODE)
    with pytest.raises(StaleGenerationError) as caught, adapters.loading(NEWER):
        known = generation(adapters.models, CODE.id)
        interfere(adapters)
        after = state(adapters.models)
    error = caught.value
    assert (error.model, error.expected) == ("bonsai:code", known)
    assert error.present == adapters.models.generation("bonsai:code") != known
    assert state(adapters.models) == after
    assert adapters.get("bonsai:code") != NEWER


@each_interference
@each_start
def test_a_failure_leaves_alone_what_somebody_else_has_put_there(
    adapters: AdapterRegistry, serving: bool, interfere: Callable[[AdapterRegistry], None]
) -> None:
    if serving:
        adapters.load(CODE)
    with pytest.raises(ValueError, match="no"), adapters.loading(NEWER):
        interfere(adapters)
        after = state(adapters.models)
        raise ValueError("no")
    assert state(adapters.models) == after


def test_of_two_that_load_the_same_name_the_later_one_wins(adapters: AdapterRegistry) -> None:
    with pytest.raises(StaleGenerationError), adapters.loading(CODE), adapters.loading(NEWER):
        pass
    assert list(adapters) == [NEWER]


def test_of_two_that_replace_the_same_adapter_the_first_to_end_wins(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    first = adapters.loading(NEWER)
    second = adapters.loading(replace(CODE, source="second"))
    with pytest.raises(StaleGenerationError), first, second:
        pass
    assert [each.source for each in adapters] == ["second"]


@each_start
def test_a_status_that_is_set_meanwhile_is_no_replacement(adapters: AdapterRegistry, serving: bool) -> None:
    if serving:
        adapters.load(CODE)
    with adapters.loading(NEWER):
        adapters.models.set_status("bonsai:code", "error")
    assert list(adapters) == [NEWER]
    assert ModelRouter(adapters.models).route("bonsai:code").status is EndpointStatus.READY


def test_a_reload_that_changes_nothing_does_not_disturb_what_loads(adapters: AdapterRegistry) -> None:
    with adapters.loading(CODE):
        adapters.models.replace_with(copy.deepcopy(adapters.models))
    assert list(adapters) == [CODE]


def test_a_load_that_is_given_up_has_failed(adapters: AdapterRegistry) -> None:
    block = adapters.loading(CODE)
    block.__enter__()
    del block
    gc.collect()
    endpoint = adapters.models.resolve("bonsai:code")
    assert endpoint is not None
    assert endpoint.status is EndpointStatus.ERROR


# What is loaded.


def test_a_new_directory_is_empty(adapters: AdapterRegistry) -> None:
    assert len(adapters) == 0
    assert list(adapters) == adapters.of("bonsai") == []
    assert adapters.get("bonsai:code") is None


def test_a_directory_needs_a_registry() -> None:
    with pytest.raises(TypeError, match="models must be a ModelRegistry, not None"):
        AdapterRegistry(None)  # type: ignore[arg-type]


def test_an_empty_registry_is_a_registry() -> None:
    models = ModelRegistry()
    assert AdapterRegistry(models).models is models


def test_adapters_are_found_by_id_alone(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.models.add_alias("coder", "bonsai:code")
    assert adapters.get("bonsai:code") is adapters.get(ModelId("bonsai:code")) is CODE
    assert [adapters.get(name) for name in ("coder", "code", "bonsai", "")] == [None] * 4


def test_adapters_are_listed_in_the_order_of_loading(adapters: AdapterRegistry) -> None:
    for each in (MATH, LAW, CODE):
        adapters.load(each)
    adapters.swap(replace(MATH, source="newer"))
    assert [each.name for each in adapters] == ["math", "law", "code"]
    assert len(adapters) == 3


@pytest.mark.parametrize("base", ["bonsai", ModelId("bonsai")], ids=repr)
def test_adapters_are_listed_by_base(adapters: AdapterRegistry, base: ModelId | str) -> None:
    for each in (MATH, LAW, CODE):
        adapters.load(each)
    assert adapters.of(base) == [MATH, CODE]
    assert adapters.of("llama") == [LAW]
    assert adapters.of("chat") == adapters.of("gone") == []


def test_endpoints_that_were_registered_by_hand_are_no_adapters(adapters: AdapterRegistry) -> None:
    adapters.models.register(ModelEndpoint("bonsai:code", "qwen3-8b", adapter="code"))
    assert adapters.get("bonsai:code") is None
    assert list(adapters) == []


def test_a_listing_stays_as_it_is_when_something_is_loaded_meanwhile(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    listing = iter(adapters)
    adapters.load(MATH)
    assert list(listing) == [CODE]


@pytest.mark.parametrize("name", [5, None, b"bonsai"], ids=repr)
def test_names_are_checked(adapters: AdapterRegistry, name: object) -> None:
    with pytest.raises(TypeError, match="id must be"):
        adapters.get(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="id must be"):
        adapters.unload(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="base must be"):
        adapters.of(name)  # type: ignore[arg-type]


def test_a_directory_is_shown_with_its_size(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    assert repr(adapters) == f"<AdapterRegistry adapters=1 models={adapters.models!r}>"


@each_removal
def test_an_adapter_goes_with_its_endpoint(
    adapters: AdapterRegistry, remove: Callable[[AdapterRegistry], None]
) -> None:
    adapters.load(CODE)
    remove(adapters)
    assert adapters.get("bonsai:code") is None
    assert list(adapters) == adapters.of("bonsai") == []
    assert len(adapters) == 0


@each_removal
def test_an_adapter_does_not_come_back_with_its_name(
    adapters: AdapterRegistry, remove: Callable[[AdapterRegistry], None]
) -> None:
    endpoint = adapters.load(CODE)
    remove(adapters)
    adapters.models.register(endpoint)
    adapters.models.set_status(endpoint.id, "loading")
    assert adapters.get("bonsai:code") is None


@pytest.mark.parametrize("status", EndpointStatus)
def test_an_adapter_stays_whatever_its_status(adapters: AdapterRegistry, status: EndpointStatus) -> None:
    adapters.load(CODE)
    adapters.models.set_status("bonsai:code", status)
    assert adapters.get("bonsai:code") is CODE
    assert adapters.of("bonsai") == list(adapters) == [CODE]


def test_an_adapter_stays_when_its_base_goes(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    adapters.models.unregister("bonsai")
    assert list(adapters) == [CODE]
    assert adapters.models.resolve("bonsai:code") is not None


def test_a_reload_brings_the_adapters_of_the_other_registry(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    other = AdapterRegistry(ModelRegistry())
    other.models.register(BASE)
    other.load(MATH)
    change = adapters.models.replace_with(other.models)
    assert (change.added, change.changed) == (("bonsai:math",), ())
    assert sorted(change.removed) == ["bonsai:code", "llama"]
    assert list(adapters) == list(other) == [MATH]


def test_a_reload_keeps_the_adapters_that_are_the_same(adapters: AdapterRegistry) -> None:
    adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    other = AdapterRegistry(ModelRegistry())
    other.models.register(BASE)
    other.load(replace(CODE))
    assert adapters.models.replace_with(other.models).changed == ()
    assert generation(adapters.models, CODE.id) == known
    assert list(adapters) == [CODE]


def test_a_reload_with_another_adapter_behind_an_equal_endpoint_is_a_change(adapters: AdapterRegistry) -> None:
    # The endpoints do not tell the weights apart, the adapters' sources do.
    old = adapters.load(CODE)
    known = generation(adapters.models, CODE.id)
    other = AdapterRegistry(ModelRegistry())
    other.models.register(BASE)
    assert other.load(NEWER) == old
    assert adapters.models.replace_with(other.models).changed == ("bonsai:code",)
    assert generation(adapters.models, CODE.id) != known
    assert list(adapters) == [NEWER]


def test_after_a_reload_the_two_share_nothing(adapters: AdapterRegistry) -> None:
    other = AdapterRegistry(copy.deepcopy(adapters.models))
    other.load(CODE)
    adapters.models.replace_with(other.models)
    other.unload(CODE.id)
    other.load(MATH)
    assert list(adapters) == [CODE]
    assert list(other) == [MATH]


def test_a_load_that_failed_stays_failed_in_a_reload(adapters: AdapterRegistry) -> None:
    with suppress(ValueError), adapters.loading(CODE):
        raise ValueError
    known = generation(adapters.models, CODE.id)
    adapters.models.replace_with(copy.deepcopy(adapters.models))
    assert generation(adapters.models, CODE.id) == known
    endpoint = adapters.models.resolve("bonsai:code")
    assert endpoint is not None
    assert endpoint.status is EndpointStatus.ERROR


def test_two_directories_of_one_registry_agree(adapters: AdapterRegistry) -> None:
    twin = AdapterRegistry(adapters.models)
    adapters.load(CODE)
    assert twin.get("bonsai:code") is CODE
    with pytest.raises(AdapterLoadedError):
        twin.load(CODE)
    twin.swap(NEWER)
    assert list(adapters) == list(twin) == [NEWER]
    with twin.lease_stack("bonsai", stack_of("code")):
        gone = adapters.unload("bonsai:code")
        assert not gone.done()
    assert gone.done()
    assert len(adapters) == len(twin) == 0


def unpickled(adapters: AdapterRegistry) -> AdapterRegistry:
    return typing.cast(AdapterRegistry, pickle.loads(pickle.dumps(adapters)))


@pytest.mark.parametrize("copied", [copy.deepcopy, unpickled])
def test_a_copy_has_the_same_adapters_and_goes_its_own_way(
    adapters: AdapterRegistry, copied: Callable[[AdapterRegistry], AdapterRegistry]
) -> None:
    adapters.load(CODE)
    adapters.load(MATH)
    adapters.models.set_status(MATH.id, "error")
    with adapters.lease_stack("bonsai", stack_of("code")):
        twin = copied(adapters)
        assert twin.models is not adapters.models
        assert list(twin) == list(adapters) == [CODE, MATH]
        assert list(twin.models) == list(adapters.models)
        assert in_flight(twin.models) == {}
        assert twin.unload(CODE.id).done()
        assert twin.swap(replace(MATH, source="newer")).done()
    assert list(adapters) == [CODE, MATH]
    adapters.unload(MATH.id)
    assert [each.source for each in twin] == ["newer"]


# Stacks.


@pytest.fixture
def loaded(adapters: AdapterRegistry) -> AdapterRegistry:
    """Return a directory with three adapters, two of them on one base."""
    for each in (CODE, MATH, LAW):
        adapters.load(each)
    return adapters


def key_of(adapters: AdapterRegistry, stack: AdapterStack, base: str = "bonsai") -> object:
    with adapters.lease_stack(base, stack) as lease:
        return lease.key


def test_a_stack_is_leased_in_its_order_with_its_weights(loaded: AdapterRegistry) -> None:
    stack = AdapterStack().add("math", 0.25).add("code", -2)
    with loaded.lease_stack("bonsai", stack) as lease:
        assert [(each.adapter, each.weight) for each in lease.members] == [(MATH, 0.25), (CODE, -2.0)]
        assert [each.generation for each in lease.members] == [
            generation(loaded.models, each) for each in (MATH.id, CODE.id)
        ]
        assert lease.endpoint is loaded.models.resolve("bonsai")
        assert in_flight(loaded.models) == {"bonsai": 1, "bonsai:math": 1, "bonsai:code": 1}
        assert repr(lease) == "<StackLease of 'bonsai' members=2>"
    assert in_flight(loaded.models) == {}


def test_a_member_may_be_named_by_its_id(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", stack_of("bonsai:math", "code")) as lease:
        assert [each.adapter for each in lease.members] == [MATH, CODE]
    assert key_of(loaded, stack_of("bonsai:math", "code")) == key_of(loaded, stack_of("math", "code"))


def test_a_name_is_taken_as_that_of_an_adapter_on_the_base_first(loaded: AdapterRegistry) -> None:
    odd = LoraAdapter("llama:law", "bonsai", "")
    loaded.load(odd)
    with loaded.lease_stack("bonsai", stack_of("llama:law")) as lease:
        assert [each.adapter for each in lease.members] == [odd]


def test_the_base_may_be_named_by_id_or_alias(loaded: AdapterRegistry) -> None:
    keys = set()
    for base in ("bonsai", ModelId("bonsai"), "chat"):
        with loaded.lease_stack(base, stack_of("code")) as lease:
            keys.add(lease.key)
    assert len(keys) == 1


def test_an_empty_stack_leases_the_base_alone(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", AdapterStack()) as lease:
        assert lease.members == ()
        assert in_flight(loaded.models) == {"bonsai": 1}
    assert in_flight(loaded.models) == {}


def test_an_adapter_twice_in_a_stack_is_leased_twice(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", AdapterStack().add("code", 0.25).add("code", 0.5)) as lease:
        assert [each.weight for each in lease.members] == [0.25, 0.5]
        assert in_flight(loaded.models) == {"bonsai": 1, "bonsai:code": 2}
    assert in_flight(loaded.models) == {}


def test_a_lease_does_not_change_with_its_stack(loaded: AdapterRegistry) -> None:
    stack = AdapterStack().add("math", 3).add("code", 1)
    with loaded.lease_stack("bonsai", stack) as lease:
        key = lease.key
        stack.normalize_weights()
        stack.adapters.clear()
        assert [each.weight for each in lease.members] == [3.0, 1.0]
        assert lease.key == key
        with pytest.raises(FrozenInstanceError):
            lease.members[0].weight = 1.0  # type: ignore[misc]


def test_the_block_of_a_stack_ends_when_it_raises(loaded: AdapterRegistry) -> None:
    with pytest.raises(ValueError, match="no"), loaded.lease_stack("bonsai", stack_of("code")):
        raise ValueError("no")
    assert in_flight(loaded.models) == {}


def test_releasing_a_stack_twice_is_harmless(loaded: AdapterRegistry) -> None:
    first, second = (loaded.lease_stack("bonsai", stack_of("code")) for _ in range(2))
    with first:
        first.release()
        first.release()
    assert in_flight(loaded.models) == {"bonsai": 1, "bonsai:code": 1}
    second.release()
    assert in_flight(loaded.models) == {}


def test_a_stack_that_is_dropped_says_so_for_each_of_its_leases(loaded: AdapterRegistry) -> None:
    with pytest.warns(ResourceWarning) as caught:
        loaded.lease_stack("bonsai", stack_of("math", "code"))
        gc.collect()
    assert sorted(str(each.message) for each in caught) == [
        f"a lease of '{id}' was dropped without being released" for id in ("bonsai", "bonsai:code", "bonsai:math")
    ]
    assert in_flight(loaded.models) == {}


def test_a_released_stack_is_dropped_in_silence(loaded: AdapterRegistry) -> None:
    # A warning would be an error here.
    lease = loaded.lease_stack("bonsai", stack_of("code"))
    lease.release()
    del lease
    gc.collect()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_stacks_lease_cannot_be_copied(loaded: AdapterRegistry, copied: Callable[[StackLease], object]) -> None:
    with loaded.lease_stack("bonsai", stack_of("code")) as lease, pytest.raises(TypeError, match="cannot be copied"):
        copied(lease)


@pytest.mark.parametrize("id", ["bonsai", "bonsai:code", "bonsai:math"])
def test_retiring_any_part_of_a_leased_stack_waits_for_it(loaded: AdapterRegistry, id: str) -> None:
    endpoint = loaded.models.resolve(id)
    with loaded.lease_stack("bonsai", stack_of("code", "math")):
        gone = loaded.models.retire(id)
        assert not gone.done()
        assert [each.endpoint for each in loaded.models.draining()] == [endpoint]
    assert gone.result(timeout=0) is endpoint
    assert loaded.models.draining() == []


def test_swapping_a_leased_member_waits_and_leaves_the_lease_as_it_was(loaded: AdapterRegistry) -> None:
    with loaded.lease_stack("bonsai", stack_of("code")) as lease:
        gone = loaded.swap(NEWER)
        assert not gone.done()
        assert [each.adapter for each in lease.members] == [CODE]
        with loaded.lease_stack("bonsai", stack_of("code")) as newer:
            assert [each.adapter for each in newer.members] == [NEWER]
            assert newer.key != lease.key
    assert gone.done()


def test_releasing_a_stack_goes_on_when_a_callback_stops_the_program(loaded: AdapterRegistry) -> None:
    lease = loaded.lease_stack("bonsai", stack_of("code", "math"))

    def stop(_: Future[ModelEndpoint | None]) -> None:
        raise SystemExit("stopped")

    ends = [loaded.models.retire(id) for id in ("bonsai", "bonsai:code", "bonsai:math")]
    ends[0].add_done_callback(stop)
    try:
        with pytest.raises(SystemExit, match="stopped"):
            lease.release()
        assert all(each.done() for each in ends)
    finally:
        lease.release()


# The key of a stack.


def test_the_key_of_an_unchanged_stack_is_the_same(loaded: AdapterRegistry) -> None:
    stack = AdapterStack().add("math", 0.25).add("code", 0.5)
    first = key_of(loaded, stack)
    loaded.models.set_status("bonsai:code", "error")
    loaded.models.set_status("bonsai:code", "ready")
    loaded.load(LoraAdapter("new", "bonsai", ""))
    assert hash(first) == hash(key_of(loaded, stack))
    assert first == key_of(loaded, AdapterStack().add("bonsai:math", 0.25).add("code", 0.5))


def test_the_key_tells_bases_apart(loaded: AdapterRegistry) -> None:
    assert key_of(loaded, AdapterStack()) != key_of(loaded, AdapterStack(), base="llama")


def test_the_key_tells_orders_apart(loaded: AdapterRegistry) -> None:
    assert key_of(loaded, stack_of("code", "math")) != key_of(loaded, stack_of("math", "code"))


def test_the_key_tells_members_apart(loaded: AdapterRegistry) -> None:
    stacks = [(), ("code",), ("math",), ("code", "math"), ("code", "code")]
    assert len({key_of(loaded, stack_of(*names)) for names in stacks}) == len(stacks)


def test_the_key_tells_weights_apart(loaded: AdapterRegistry) -> None:
    weights = [0.0, 1.0, -1.0, math.nextafter(1.0, 2.0)]
    assert len({key_of(loaded, AdapterStack().add("code", weight)) for weight in weights}) == len(weights)


def test_the_key_tells_which_member_has_which_weight(loaded: AdapterRegistry) -> None:
    one, two = AdapterStack().add("code", 1).add("math", 2), AdapterStack().add("code", 2).add("math", 1)
    assert key_of(loaded, one) != key_of(loaded, two)


@pytest.mark.parametrize("endpoint", [BASE, PLAIN], ids=["base", "member"])
def test_the_key_tells_generations_apart(loaded: AdapterRegistry, endpoint: ModelEndpoint) -> None:
    before = key_of(loaded, stack_of("code"))
    if endpoint is BASE:
        loaded.models.register(BASE)
    else:
        loaded.swap(CODE)
    assert key_of(loaded, stack_of("code")) != before


def test_the_key_of_an_empty_stack_tells_generations_of_the_base_apart(loaded: AdapterRegistry) -> None:
    before = key_of(loaded, AdapterStack())
    loaded.models.register(BASE)
    assert key_of(loaded, AdapterStack()) != before


# What cannot be leased as a stack.


def assert_refused(
    adapters: AdapterRegistry, base: object, stack: object, error: type[Exception], **facts: object
) -> None:
    """Check that leasing raises *error* with these *facts*, and leases nothing."""
    before = state(adapters.models)
    with pytest.raises(error) as caught:
        adapters.lease_stack(base, stack)  # type: ignore[arg-type]
    assert {fact: getattr(caught.value, fact) for fact in facts} == facts
    assert state(adapters.models) == before
    assert in_flight(adapters.models) == {}


def test_a_stack_on_an_unknown_base_is_not_leased(loaded: AdapterRegistry) -> None:
    assert_refused(loaded, "gone", stack_of("code"), ModelNotFoundError, model="gone")


@pytest.mark.parametrize("status", NOT_READY)
def test_a_stack_on_a_base_that_is_not_ready_is_not_leased(loaded: AdapterRegistry, status: EndpointStatus) -> None:
    loaded.models.set_status("bonsai", status)
    assert_refused(loaded, "chat", stack_of("code"), ModelNotReadyError, model="bonsai", status=status)
    assert_refused(loaded, "bonsai", AdapterStack(), ModelNotReadyError, model="bonsai", status=status)


@pytest.mark.parametrize("base", ["bonsai:code", "coder"])
def test_a_stack_on_an_adapter_is_not_leased(loaded: AdapterRegistry, base: str) -> None:
    loaded.models.add_alias("coder", "bonsai:code")
    facts = {"adapter": "bonsai:code", "rule": "it is an adapter's endpoint, not a base"}
    assert_refused(loaded, base, AdapterStack(), AdapterBaseError, **facts)


def test_a_stack_on_an_adapter_that_was_registered_by_hand_is_not_leased(loaded: AdapterRegistry) -> None:
    # An empty adapter name is one as well.
    loaded.models.register(ModelEndpoint("by-hand", "qwen3-8b", adapter=""))
    assert_refused(loaded, "by-hand", AdapterStack(), AdapterBaseError, adapter="by-hand", base_model="by-hand")


@pytest.mark.parametrize("names", [("gone",), ("code", "gone"), ("gone", "code"), ("code", "bonsai:code:x")])
def test_a_stack_with_an_unknown_member_is_not_leased(loaded: AdapterRegistry, names: tuple[str, ...]) -> None:
    assert_refused(loaded, "bonsai", stack_of(*names), ModelNotFoundError)


def test_an_unknown_member_is_named_by_the_id_that_it_would_have(loaded: AdapterRegistry) -> None:
    assert_refused(loaded, "chat", stack_of("gone"), ModelNotFoundError, model="bonsai:gone")


def test_an_unknown_member_that_was_named_by_its_id_is_named_so(loaded: AdapterRegistry) -> None:
    assert_refused(loaded, "bonsai", stack_of("bonsai:gone"), ModelNotFoundError, model="bonsai:gone")


@pytest.mark.parametrize("name", ["", "bonsai", "chat", "coder", "plain"])
def test_neither_bases_nor_aliases_nor_plain_endpoints_are_members(loaded: AdapterRegistry, name: str) -> None:
    loaded.models.add_alias("coder", "bonsai:code")
    loaded.models.register(ModelEndpoint("bonsai:plain", "qwen3-8b", adapter="plain"))
    assert_refused(loaded, "bonsai", stack_of(name), ModelNotFoundError)


@each_removal
def test_a_member_that_is_gone_is_unknown(loaded: AdapterRegistry, remove: Callable[[AdapterRegistry], None]) -> None:
    remove(loaded)
    assert_refused(loaded, "bonsai", stack_of("code"), ModelNotFoundError)


@pytest.mark.parametrize("status", NOT_READY)
@pytest.mark.parametrize("names", [("math",), ("math", "code"), ("code", "math")])
def test_a_stack_with_a_member_that_is_not_ready_is_not_leased(
    loaded: AdapterRegistry, status: EndpointStatus, names: tuple[str, ...]
) -> None:
    loaded.models.set_status(MATH.id, status)
    assert_refused(loaded, "bonsai", stack_of(*names), ModelNotReadyError, model="bonsai:math", status=status)


def test_a_stack_with_a_member_that_loads_is_not_leased(loaded: AdapterRegistry) -> None:
    with loaded.loading(LoraAdapter("new", "bonsai", "")):
        assert_refused(loaded, "bonsai", stack_of("code", "new"), ModelNotReadyError, model="bonsai:new")
    with loaded.loading(NEWER):
        # The old one goes on serving.
        assert key_of(loaded, stack_of("code"))


@pytest.mark.parametrize("name", ["law", "llama:law"])
@pytest.mark.parametrize("status", EndpointStatus)
def test_a_stack_with_a_member_on_another_base_is_not_leased(
    loaded: AdapterRegistry, name: str, status: EndpointStatus
) -> None:
    loaded.models.set_status("llama:law", status)
    facts = {"adapter": name, "base_model": "bonsai", "rule": "it is loaded on 'llama'"}
    assert_refused(loaded, "bonsai", stack_of("code", name), AdapterBaseError, **facts)


def test_an_adapter_of_the_base_goes_before_one_of_the_same_name_elsewhere(adapters: AdapterRegistry) -> None:
    adapters.load(replace(CODE, base_model="llama"))
    adapters.load(CODE)
    with adapters.lease_stack("bonsai", stack_of("code")) as lease:
        assert [each.adapter for each in lease.members] == [CODE]


@pytest.mark.parametrize("stack", [None, ["code"], "code", ()], ids=repr)
def test_only_stacks_are_leased(loaded: AdapterRegistry, stack: object) -> None:
    assert_refused(loaded, "bonsai", stack, TypeError)


@pytest.mark.parametrize("base", [None, 5, b"bonsai"], ids=repr)
def test_a_base_is_named_by_text(loaded: AdapterRegistry, base: object) -> None:
    assert_refused(loaded, base, stack_of("code"), TypeError)


@pytest.mark.parametrize(
    ("error", "base", "text"),
    [
        (AdapterBaseError("code", "bonsai", "no"), ValueError, "adapter 'code' does not fit base model 'bonsai': no"),
        (AdapterConfigError("file", "r", "is missing"), ValueError, "file: r is missing"),
        (AdapterConfigError("file", None, "is gone"), ValueError, "file: is gone"),
        (AdapterLoadedError("bonsai:code"), ValueError, "adapter 'bonsai:code' is loaded already"),
        (StaleGenerationError("bonsai", 7, None), RoutingError, "model 'bonsai' has generation None, not 7"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_carries_its_facts_to_wherever_it_is_sent(
    error: RoutingError, base: type[Exception], text: str
) -> None:
    assert isinstance(error, RoutingError)
    assert isinstance(error, base)
    assert str(error) == text
    assert error.args == tuple(vars(error).values())
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), vars(twin), str(twin)) == (type(error), vars(error), text)


# One step at a time.


def outcome(call: Callable[[AdapterRegistry], object], adapters: AdapterRegistry) -> object:
    """Return what a call answers or raises, in a form that can be compared after all leases have ended."""
    try:
        answer = call(adapters)
    except RoutingError as error:
        return type(error), error.args
    if isinstance(answer, StackLease):
        key = answer.key
        # What is leased and gone meanwhile counts like what is there.
        leased = sum(in_flight(adapters.models).values()) + sum(each.leases for each in adapters.models.draining())
        answer.release()
        return key, leased
    return answer


def settled(answer: object) -> object:
    """Return what a future has completed with, once all leases have ended, and any other answer as it is."""
    return answer.result(timeout=0) if isinstance(answer, Future) else answer


def in_one_registry(*calls: Callable[[AdapterRegistry], object], loaded: bool) -> tuple[list[object], object]:
    """Return what calls answer one after another, and what is there afterwards."""
    adapters = small_registry(loaded)
    return [settled(outcome(call, adapters)) for call in calls], state(adapters.models)


def small_registry(loaded: bool) -> AdapterRegistry:
    adapters = AdapterRegistry(ModelRegistry())
    adapters.models.register(BASE)
    if loaded:
        adapters.load(CODE)
    return adapters


@pytest.mark.parametrize("loaded", [False, True], ids=["absent", "loaded"])
@pytest.mark.parametrize(
    "call",
    [
        lambda adapters: adapters.load(CODE),
        lambda adapters: adapters.swap(NEWER),
        lambda adapters: adapters.swap(NEWER, expect=2),
        lambda adapters: adapters.unload("bonsai:code"),
        lambda adapters: adapters.lease_stack("bonsai", stack_of("code")),
        lambda adapters: adapters.get("bonsai:code"),
        list,
        len,
    ],
    ids=["load", "swap", "expect", "unload", "stack", "get", "list", "len"],
)
@pytest.mark.parametrize(
    "other",
    [
        lambda adapters: adapters.models.register(PLAIN),
        lambda adapters: adapters.models.unregister("bonsai:code"),
        lambda adapters: adapters.models.replace_with(ModelRegistry()),
        lambda adapters: adapters.swap(replace(CODE, source="elsewhere")),
    ],
    ids=["register", "unregister", "replace_with", "swap"],
)
def test_what_others_do_meanwhile_comes_before_or_after(
    call: Callable[[AdapterRegistry], object], other: Callable[[AdapterRegistry], object], loaded: bool
) -> None:
    (first, second), end = in_one_registry(call, other, loaded=loaded)
    allowed = [(first, second, end)]
    (second, first), end = in_one_registry(other, call, loaded=loaded)
    allowed.append((first, second, end))
    for place in range(10_000):
        adapters = small_registry(loaded)
        answers: list[object] = []
        countdown = iter(range(place, -1, -1))

        def visit(
            adapters: AdapterRegistry = adapters,
            answers: list[object] = answers,
            countdown: Iterator[int] = countdown,
        ) -> None:
            # Who holds the lock cannot be interrupted by somebody who needs it.
            if not adapters.models._ledger.lock.locked() and next(countdown, None) == 0:
                answers.append(outcome(other, adapters))

        def traced(adapters: AdapterRegistry, visit: Callable[[], None] = visit) -> object:
            with stopped_at_each_instruction(visit):
                return call(adapters)

        answer = outcome(traced, adapters)
        if not answers:
            assert place > 3, "nothing was stopped"
            return
        assert (settled(answer), settled(answers[0]), state(adapters.models)) in allowed, f"stopped at place {place}"
    pytest.fail("the call does not end")


def test_a_stack_that_is_released_while_somebody_holds_the_lock_completes_the_waits(loaded: AdapterRegistry) -> None:
    lease = loaded.lease_stack("bonsai", stack_of("code", "math"))
    ends = [loaded.unload("bonsai:code"), loaded.unload("bonsai:math")]
    with loaded.models._ledger.lock:
        lease.release()
    assert loaded.get("llama:law") is LAW
    assert all(each.done() for each in ends)


# Random calls.


@dataclass(eq=False)
class Publication:
    """What was published under an id at one time, and how often it is leased."""

    endpoint: ModelEndpoint
    declared: ModelEndpoint
    adapter: LoraAdapter | None
    leases: int = 0


@dataclass
class Block:
    """A ``loading`` block that has not ended."""

    block: AbstractContextManager[ModelEndpoint]
    adapter: LoraAdapter
    known: Publication
    serving: bool


class Oracle:
    """What is published, who leases it, and who waits, as plain as dictionaries and lists."""

    def __init__(self) -> None:
        self.live: dict[str, Publication] = {}
        self.gone: list[Publication] = []
        self.waits: list[tuple[Future[ModelEndpoint | None], Publication | None]] = []
        self.leases: list[tuple[Callable[[], None], list[Publication]]] = []
        self.generations: dict[int, Publication] = {}

    def publish(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None = None) -> Publication | None:
        old = self.live.get(str(endpoint.id))
        self.live[str(endpoint.id)] = Publication(endpoint, endpoint, adapter)
        if old is not None:
            self.gone.append(old)
        return old

    def remove(self, id: str) -> Publication | None:
        old = self.live.pop(id, None)
        if old is not None:
            self.gone.append(old)
        return old

    def adapter(self, id: str) -> LoraAdapter | None:
        return self.live[id].adapter if id in self.live else None

    def fitting(self, adapter: LoraAdapter) -> ModelEndpoint:
        if adapter.base_model not in self.live:
            raise ModelNotFoundError(adapter.base_model)
        base = self.live[adapter.base_model].endpoint
        limit = base.max_context_length if adapter.max_context_length is None else adapter.max_context_length
        weights = (adapter.trained_on or base.base_model).split("/")[-1].lower()
        if base.adapter is not None or limit > base.max_context_length or weights != base.base_model.lower():
            raise AdapterBaseError(adapter.name, adapter.base_model, "")
        return ModelEndpoint(adapter.id, base.base_model, adapter=adapter.name, max_context_length=limit)

    def load(self, adapter: LoraAdapter) -> None:
        endpoint = self.fitting(adapter)
        if str(adapter.id) in self.live:
            raise AdapterLoadedError(str(adapter.id))
        self.publish(endpoint, adapter)

    def swap(self, adapter: LoraAdapter, expect: Publication | None) -> Publication | None:
        endpoint = self.fitting(adapter)
        if expect is not None and expect is not self.live.get(str(adapter.id)):
            raise StaleGenerationError(str(adapter.id), 0, 0)
        return self.publish(endpoint, adapter)

    def set_status(self, id: str, status: EndpointStatus) -> None:
        if id in self.live:
            self.live[id].endpoint = replace(self.live[id].endpoint, status=status)

    def begin(self, adapter: LoraAdapter) -> tuple[Publication, bool]:
        endpoint, id = self.fitting(adapter), str(adapter.id)
        serving = id in self.live and self.live[id].endpoint.status == "ready"
        if not serving:
            self.publish(replace(endpoint, status=EndpointStatus("loading")), adapter)
        return self.live[id], serving

    def end(self, block: Block, fails: bool) -> None:
        id = str(block.adapter.id)
        if block.known is not self.live.get(id):
            if not fails:
                raise StaleGenerationError(id, 0, 0)
        elif not block.serving:
            self.set_status(id, EndpointStatus.ERROR if fails else EndpointStatus.READY)
        elif not fails:
            self.publish(self.fitting(block.adapter), block.adapter)

    def stack(self, base: str, names: list[str]) -> list[Publication]:
        if base not in self.live:
            raise ModelNotFoundError(base)
        if self.live[base].endpoint.adapter is not None:
            raise AdapterBaseError("", base, "")
        ids = [base]
        for name in names:
            named = [id for id, each in self.live.items() if each.adapter is not None and each.adapter.name == name]
            found = [id for id in (f"{base}:{name}", name, *named) if self.adapter(id) is not None]
            ids.append(found[0] if found else "")
        for id in ids:
            if id not in self.live:
                raise ModelNotFoundError(id)
            adapter = self.adapter(id)
            if adapter is not None and adapter.base_model != base:
                raise AdapterBaseError(id, base, "")
            if self.live[id].endpoint.status != "ready":
                raise ModelNotReadyError(id, "")
        return [self.live[id] for id in ids]

    def replace_with(self, contents: dict[str, tuple[ModelEndpoint, LoraAdapter | None]]) -> None:
        before, self.live = self.live, {}
        for id, (endpoint, adapter) in contents.items():
            kept = before.get(id)
            if kept is not None and endpoint in (kept.endpoint, kept.declared) and adapter == kept.adapter:
                self.live[id] = before.pop(id)
                self.live[id].declared = endpoint
            else:
                self.publish(endpoint, adapter)
        self.gone.extend(before.values())

    def check(self, adapters: AdapterRegistry) -> None:
        models = adapters.models
        assert {str(each.id): each for each in models} == {id: each.endpoint for id, each in self.live.items()}
        loaded = {id: each.adapter for id, each in self.live.items() if each.adapter is not None}
        assert {str(each.id): each for each in adapters} == loaded
        assert len(adapters) == len(loaded)
        for id, each in self.live.items():
            assert adapters.get(id) == each.adapter
            assert models.in_flight(id) == each.leases
            assert self.generations.setdefault(generation(models, id), each) is each
        for base in BASES:
            assert {str(each.id) for each in adapters.of(base)} == {
                id for id, each in loaded.items() if each.base_model == base
            }
        for future, publication in self.waits:
            assert future.done() == (publication is None or not publication.leases)
            if future.done():
                assert future.result() == (None if publication is None else publication.endpoint)
        draining = sorted((str(each.endpoint.id), each.leases) for each in models.draining())
        assert draining == sorted((str(each.endpoint.id), each.leases) for each in self.gone if each.leases)


# Ids that can be confused: "a:x" is a base or an adapter, and "a:x:y" an adapter of "a" or one of "a:x".
BASES = ["a", "b", "a:x", "nowhere"]
NAMES = ["x", "y", "x:y"]
IDS = ["a", "b", "a:x", "a:y", "a:x:y", "b:x", "b:y"]


def raised(call: Callable[[], object]) -> type[RoutingError] | None:
    try:
        call()
    except RoutingError as error:
        return type(error)
    return None


class Walk:
    """A registry, its oracle, and random calls that both get."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.adapters = AdapterRegistry(ModelRegistry())
        self.oracle = Oracle()
        self.blocks: list[Block] = []

    def random_base(self) -> ModelEndpoint:
        return ModelEndpoint(
            self.chance.choice(["a", "a", "b", "b", "a:x"]),
            self.chance.choice(["q", "Q", "r"]),
            max_context_length=self.chance.choice([2, 4]),
            adapter="odd" if self.chance.random() < 0.05 else None,
        )

    def random_adapter(self) -> LoraAdapter:
        return LoraAdapter(
            self.chance.choice(NAMES),
            self.chance.choice(["a", "a", "a", "b", "b", "a:x", "nowhere"]),
            self.chance.choice(["here", "there"]),
            max_context_length=self.chance.choice([None, None, None, 1, 3]),
            trained_on=self.chance.choice([None, None, None, "q", "org/Q", "r"]),
        )

    def agree(self, real: Callable[[], object], plain: Callable[[], object]) -> None:
        """Check that both raise the same, or nothing."""
        assert raised(real) == raised(plain)

    def register(self) -> None:
        endpoint = self.random_base()
        if self.chance.random() < 0.3:
            endpoint = replace(endpoint, id=ModelId(self.chance.choice(IDS)))
        if self.chance.random() < 0.5:
            self.adapters.models.register(endpoint)
            self.oracle.publish(endpoint)
        else:
            future = self.adapters.models.swap(endpoint)
            self.oracle.waits.append((future, self.oracle.publish(endpoint)))

    def remove(self) -> None:
        id = self.chance.choice(IDS)
        match self.chance.randrange(3):
            case 0:
                self.adapters.models.unregister(id)
                self.oracle.remove(id)
            case 1:
                self.oracle.waits.append((self.adapters.models.retire(id), self.oracle.remove(id)))
            case _:
                future = self.adapters.unload(id)
                loaded = self.oracle.adapter(id) is not None
                self.oracle.waits.append((future, self.oracle.remove(id) if loaded else None))

    def load(self) -> None:
        adapter = self.random_adapter()
        self.agree(lambda: self.adapters.load(adapter), lambda: self.oracle.load(adapter))

    def swap(self) -> None:
        adapter, expected = self.random_adapter(), None
        if self.chance.random() < 0.5 and self.oracle.generations:
            # One that is there, or any that ever was.
            expected = self.oracle.live.get(str(adapter.id))
            if expected is None or self.chance.random() < 0.3:
                expected = self.chance.choice(list(self.oracle.generations.values()))
        expect = next((number for number, each in self.oracle.generations.items() if each is expected), None)
        futures: list[Future[ModelEndpoint | None]] = []
        replaced: list[Publication | None] = []
        self.agree(
            lambda: futures.append(self.adapters.swap(adapter, expect=expect)),
            lambda: replaced.append(self.oracle.swap(adapter, expected)),
        )
        self.oracle.waits.extend(zip(futures, replaced, strict=True))

    def begin(self) -> None:
        adapter = self.random_adapter()
        block = self.adapters.loading(adapter)
        begun: list[tuple[Publication, bool]] = []
        self.agree(block.__enter__, lambda: begun.append(self.oracle.begin(adapter)))
        self.blocks.extend(Block(block, adapter, *each) for each in begun)

    def end(self) -> None:
        if not self.blocks:
            return
        block = self.blocks.pop(self.chance.randrange(len(self.blocks)))
        fails = self.chance.random() < 0.4
        failure = ValueError("no") if fails else None

        def leave() -> None:
            try:
                assert not block.block.__exit__(None if failure is None else type(failure), failure, None)
            except ValueError as error:
                if error is not failure:
                    raise

        self.agree(leave, lambda: self.oracle.end(block, fails))

    def lease(self) -> None:
        base = self.chance.choice(BASES[:3] + IDS)
        names = self.chance.sample([*NAMES, "a:x", "a:x:y", "b:y"], self.chance.choice([0, 1, 1, 2]))
        leases: list[StackLease] = []
        leased: list[list[Publication]] = []
        self.agree(
            lambda: leases.append(self.adapters.lease_stack(base, stack_of(*names))),
            lambda: leased.append(self.oracle.stack(base, names)),
        )
        for lease, publications in zip(leases, leased, strict=True):
            for publication in publications:
                publication.leases += 1
            assert [each.adapter for each in lease.members] == [each.adapter for each in publications[1:]]
            assert [self.oracle.generations[each.generation] for each in lease.members] == publications[1:]
            self.oracle.leases.append((lease.release, publications))

    def lease_one(self) -> None:
        id = self.chance.choice(IDS)
        publication = self.oracle.live.get(id)
        if publication is not None and publication.endpoint.status == "ready":
            publication.leases += 1
            self.oracle.leases.append((ModelRouter(self.adapters.models).lease(id).release, [publication]))

    def release(self) -> None:
        for _ in range(min(self.chance.randrange(4), len(self.oracle.leases))):
            release, publications = self.oracle.leases.pop(self.chance.randrange(len(self.oracle.leases)))
            release()
            if self.chance.random() < 0.2:
                release()
            for publication in publications:
                publication.leases -= 1

    def set_status(self) -> None:
        id, status = self.chance.choice(IDS), self.chance.choice([EndpointStatus.READY, *EndpointStatus])
        self.adapters.models.set_status(id, status)
        self.oracle.set_status(id, status)

    def replace_everything(self) -> None:
        other = AdapterRegistry(ModelRegistry())
        contents: dict[str, tuple[ModelEndpoint, LoraAdapter | None]] = {}
        kept = [each for each in self.oracle.live.values() if each.adapter is None]
        for endpoint in [*(each.declared for each in kept), self.random_base()]:
            if self.chance.random() < 0.8:
                other.models.register(endpoint)
                contents[str(endpoint.id)] = endpoint, None
        for adapter in [*(each.adapter for each in self.oracle.live.values()), self.random_adapter()]:
            if adapter is not None and self.chance.random() < 0.8:
                with suppress(RoutingError):
                    contents[str(adapter.id)] = other.load(adapter), adapter
        self.adapters.models.replace_with(other.models)
        self.oracle.replace_with(contents)

    def step(self) -> None:
        often = [self.load, self.swap, self.lease, self.release, self.lease_one]
        seldom = [self.register, self.remove, self.begin, self.end, self.set_status]
        rare = [self.replace_everything]
        self.chance.choice(3 * often + 2 * seldom + rare)()


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_called_the_registry_does_what_the_oracle_says(seed: int) -> None:
    walk = Walk(seed)
    for id in ("a", "b"):
        walk.adapters.models.register(ModelEndpoint(id, "q"))
        walk.oracle.publish(ModelEndpoint(id, "q"))
    for _ in range(250):
        walk.step()
        walk.oracle.check(walk.adapters)
    twin = copy.deepcopy(walk.adapters)
    while walk.blocks:
        walk.end()
    for release, publications in walk.oracle.leases:
        release()
        for publication in publications:
            publication.leases -= 1
    walk.oracle.check(walk.adapters)
    assert all(future.done() for future, _ in walk.oracle.waits)
    assert walk.adapters.models.draining() == []
    assert in_flight(twin.models) == {}

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from bonsai_routing.adapter_registry import AdapterRegistry
from bonsai_routing.adapters import AdapterStack
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.engines import (
    llama_cpp_lora,
    lorax_parameters,
    parse_vllm_lora_modules,
    peft_weighted_adapter,
    sglang_load_lora_adapter,
    sglang_lora_paths,
    sglang_unload_lora_adapter,
    vllm_load_lora_adapter,
    vllm_lora_modules,
    vllm_unload_lora_adapter,
)
from bonsai_routing.errors import ModelNotFoundError
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry
from bonsai_routing.router import ModelRouter

CODE = LoraAdapter("code", "bonsai", "adapters/code")
MATH = LoraAdapter("math", "bonsai", "adapters/math")
LAW = LoraAdapter("law", "bonsai", "adapters/law")
ADAPTERS = [CODE, MATH, LAW]
SERVER = ["code", "math", "law"]

STACK = AdapterStack().add("math", 0.5).add("code", 0.25)

# Each function of a stack, with everything else as it has to be.
OF_A_STACK: dict[str, Callable[[Any], object]] = {
    "peft_weighted_adapter": lambda stack: peft_weighted_adapter(stack, "blend"),
    "llama_cpp_lora": lambda stack: llama_cpp_lora(stack, SERVER),
    "lorax_parameters": lambda stack: lorax_parameters(stack, ADAPTERS),
}
of_a_stack = pytest.mark.parametrize("function", OF_A_STACK.values(), ids=OF_A_STACK)


@pytest.fixture
def registry() -> AdapterRegistry:
    models = ModelRegistry()
    models.register(ModelEndpoint("bonsai", "qwen3-8b"))
    registry = AdapterRegistry(models)
    for adapter in ADAPTERS:
        registry.load(adapter)
    return registry


# Stacks.


@of_a_stack
def test_a_lease_gives_what_its_stack_gives(function: Callable[[Any], object], registry: AdapterRegistry) -> None:
    with registry.lease_stack("bonsai", STACK) as lease:
        assert function(lease) == function(STACK)


@of_a_stack
def test_a_lease_knows_the_names_of_adapters_that_were_given_by_id(
    function: Callable[[Any], object], registry: AdapterRegistry
) -> None:
    stack = AdapterStack().add("bonsai:math", 0.25).add("code", 0.25).add("math", 0.25)
    with registry.lease_stack("bonsai", stack) as lease:
        assert function(lease) == function(STACK)


@of_a_stack
def test_the_weights_of_one_name_add_up_where_it_is_first(function: Callable[[Any], object]) -> None:
    stack = AdapterStack().add("math", 0.125).add("code", 0.25).add("math", 0.375)
    assert function(stack) == function(STACK)


def test_weights_are_added_from_left_to_right() -> None:
    stack = AdapterStack().add("code", 1e16).add("code", 1.0).add("code", -1e16)
    assert peft_weighted_adapter(stack, "blend")["weights"] == [0.0]


@of_a_stack
def test_weights_without_a_finite_sum_are_refused(function: Callable[[Any], object]) -> None:
    stack = AdapterStack().add("math", 1e308).add("math", 1e308)
    with pytest.raises(
        ValueError, match=r"^stack must have weights with a finite sum for each name, not inf for 'math'"
    ):
        function(stack)


@of_a_stack
@pytest.mark.parametrize("stack", [None, "code", [("code", 1.0)], {"code": 1.0}])
def test_what_is_no_stack_is_refused(function: Callable[[Any], object], stack: object) -> None:
    with pytest.raises(TypeError, match=r"^stack must be an AdapterStack, a StackLease or a Lease, not "):
        function(stack)


@of_a_stack
def test_the_stack_stays_as_it_is(function: Callable[[Any], object]) -> None:
    stack = AdapterStack().add("math", 0.5).add("code", 0.25).add("math", 0.5)
    before = list(stack.adapters)
    function(stack)
    assert stack.adapters == before


@pytest.mark.parametrize("function", [OF_A_STACK["llama_cpp_lora"], OF_A_STACK["lorax_parameters"]])
@pytest.mark.parametrize("weight", [1.0, 0.0, -1.0])
def test_an_adapter_that_the_server_does_not_have_is_named(function: Callable[[Any], object], weight: float) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        function(STACK.add("art", weight))
    assert raised.value.model == "art"


@of_a_stack
def test_what_goes_to_an_engine_is_ready_for_json(function: Callable[[Any], object]) -> None:
    assert json.loads(json.dumps(function(STACK))) == function(STACK)


# PEFT.


def test_peft_gets_the_names_and_weights_in_order_and_the_exact_combination() -> None:
    assert peft_weighted_adapter(STACK, "blend") == {
        "adapters": ["math", "code"],
        "weights": [0.5, 0.25],
        "adapter_name": "blend",
        "combination_type": "cat",
    }


def test_peft_gets_negative_weights_and_zeros_as_they_are() -> None:
    stack = AdapterStack().add("math", 0.0).add("code", -0.25)
    assert peft_weighted_adapter(stack, "blend")["weights"] == [0.0, -0.25]


def test_peft_gets_another_combination_if_asked() -> None:
    assert peft_weighted_adapter(STACK, "blend", combination_type="svd")["combination_type"] == "svd"


def test_peft_cannot_blend_nothing(registry: AdapterRegistry) -> None:
    with pytest.raises(ValueError, match=r"^stack must hold an adapter for PEFT, not AdapterStack\(adapters=\[\]\)$"):
        peft_weighted_adapter(AdapterStack(), "blend")
    with (
        registry.lease_stack("bonsai", AdapterStack()) as lease,
        pytest.raises(ValueError, match=r"^stack must hold an adapter for PEFT, not <StackLease of 'bonsai'"),
    ):
        peft_weighted_adapter(lease, "blend")


def test_a_blend_cannot_have_the_name_of_one_of_its_adapters() -> None:
    with pytest.raises(ValueError, match=r"^adapter_name must be the name of a new adapter, not 'code', which is in"):
        peft_weighted_adapter(STACK, "code")


def test_peft_wants_text_for_names() -> None:
    with pytest.raises(TypeError, match=r"^adapter_name must be a str, not None$"):
        peft_weighted_adapter(STACK, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^combination_type must be a str, not 1$"):
        peft_weighted_adapter(STACK, "blend", combination_type=1)  # type: ignore[arg-type]


# llama.cpp.


def test_llama_cpp_gets_every_adapter_of_the_server_in_its_order() -> None:
    assert llama_cpp_lora(STACK, SERVER) == [
        {"id": 0, "scale": 0.25},
        {"id": 1, "scale": 0.5},
        {"id": 2, "scale": 0.0},
    ]


def test_llama_cpp_gets_the_ids_of_a_mapping_in_its_order() -> None:
    assert llama_cpp_lora(STACK, {"law": 7, "math": 0, "code": 3}) == [
        {"id": 7, "scale": 0.0},
        {"id": 0, "scale": 0.5},
        {"id": 3, "scale": 0.25},
    ]


def test_an_empty_stack_is_the_base_alone_for_llama_cpp_and_not_an_empty_list() -> None:
    assert llama_cpp_lora(AdapterStack(), SERVER) == [{"id": id, "scale": 0.0} for id in (0, 1, 2)]


@pytest.mark.parametrize("ids", [[], (), {}])
def test_only_a_server_without_adapters_gets_an_empty_list(ids: "list[str] | dict[str, int]") -> None:
    assert llama_cpp_lora(AdapterStack(), ids) == []


def test_llama_cpp_gets_negative_weights_as_they_are() -> None:
    assert llama_cpp_lora(AdapterStack().add("math", -0.5), ["math"]) == [{"id": 0, "scale": -0.5}]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("code", TypeError, "ids must be a sequence of names or a mapping of names to ids, not 'code'"),
        ({"code"}, TypeError, "ids must be a sequence of names or a mapping of names to ids, not {'code'}"),
        (None, TypeError, "ids must be a sequence of names or a mapping of names to ids, not None"),
        (["code", 1], TypeError, "ids must have a str as each name, not 1"),
        (b"code", TypeError, "ids must have a str as each name, not 99"),
        ({1: 1}, TypeError, "ids must have a str as each name, not 1"),
        ({"code": "0"}, TypeError, "ids must have an int as each id, not '0' for 'code'"),
        ({"code": True}, TypeError, "ids must have an int as each id, not True for 'code'"),
        ({"code": -1}, ValueError, "ids must have an int of 0 or more as each id, not -1 for 'code'"),
        (["code", "math", "code"], ValueError, "ids must have each name and each id once, not 'code' with 2 again"),
        ({"code": 0, "math": 0}, ValueError, "ids must have each name and each id once, not 'math' with 0 again"),
    ],
    ids=repr,
)
def test_ids_that_llama_cpp_could_not_mean_are_refused(
    ids: Sequence[str] | Mapping[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        llama_cpp_lora(AdapterStack(), ids)
    assert str(raised.value) == message


# LoRAX.


def test_lorax_gets_sources_weights_and_all_that_its_client_requires() -> None:
    assert lorax_parameters(STACK, ADAPTERS) == {
        "merged_adapters": {
            "ids": ["adapters/math", "adapters/code"],
            "weights": [0.5, 0.25],
            "merge_strategy": "linear",
            "density": 1.0,
            "majority_sign_method": "total",
        }
    }


def test_lorax_gets_another_strategy_if_asked() -> None:
    given = lorax_parameters(STACK, ADAPTERS, merge_strategy="dare_ties", density=0, majority_sign_method="frequency")[
        "merged_adapters"
    ]
    assert isinstance(given, dict)
    assert (given["merge_strategy"], given["density"], given["majority_sign_method"]) == ("dare_ties", 0.0, "frequency")


@pytest.mark.parametrize("weights", [[], [0.0], [0.0, 0.0], [1.0, -1.0]])
def test_a_stack_that_adds_nothing_is_the_base_alone_for_lorax(weights: list[float]) -> None:
    stack = AdapterStack()
    for weight in weights:
        stack = stack.add("code", weight)
    assert lorax_parameters(stack, ADAPTERS) == {}


def test_a_lone_adapter_is_not_merged_by_lorax() -> None:
    assert lorax_parameters(AdapterStack().add("code", 1), ADAPTERS) == {"adapter_id": "adapters/code"}


def test_an_adapter_of_weight_zero_is_left_out_for_lorax() -> None:
    assert lorax_parameters(AdapterStack().add("math", 0.0).add("code", 1.0), ADAPTERS) == {
        "adapter_id": "adapters/code"
    }


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_lorax_cannot_weigh_a_lone_adapter(weight: float) -> None:
    rule = f"^stack must give a lone adapter the weight 1.0 for LoRAX, not {weight} for 'code'$"
    with pytest.raises(ValueError, match=rule):
        lorax_parameters(AdapterStack().add("code", weight).add("math", 0.0), ADAPTERS)


def test_lorax_cannot_subtract_an_adapter() -> None:
    with pytest.raises(ValueError, match=r"^stack must have no negative weight for LoRAX, not -0\.5 for 'law'$"):
        lorax_parameters(STACK.add("law", -0.5), ADAPTERS)


def test_a_lease_brings_the_sources_for_lorax(registry: AdapterRegistry) -> None:
    with registry.lease_stack("bonsai", STACK) as lease:
        assert lorax_parameters(lease) == lorax_parameters(STACK, ADAPTERS)


def test_a_registry_can_say_what_lorax_calls_its_adapters(registry: AdapterRegistry) -> None:
    assert lorax_parameters(STACK, registry) == lorax_parameters(STACK, iter(ADAPTERS))


def test_two_adapters_of_one_name_and_different_sources_are_refused() -> None:
    other = LoraAdapter("code", "llama", "adapters/llama-code")
    with pytest.raises(ValueError, match=r"^adapters must have one source for each name, not another for LoraAdapter"):
        lorax_parameters(STACK, [*ADAPTERS, other])
    assert lorax_parameters(STACK, [*ADAPTERS, CODE]) == lorax_parameters(STACK, ADAPTERS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"merge_strategy": "cat"},
            ValueError,
            "merge_strategy must be one of linear, ties, dare_linear, dare_ties, not 'cat'",
        ),
        ({"majority_sign_method": []}, ValueError, "majority_sign_method must be one of total, frequency, not []"),
        ({"density": "1"}, TypeError, "density must be a number, not '1'"),
        ({"density": True}, TypeError, "density must be a number, not True"),
        ({"density": -0.1}, ValueError, "density must be from 0.0 to 1.0, not -0.1"),
        ({"density": 1.1}, ValueError, "density must be from 0.0 to 1.0, not 1.1"),
        ({"density": float("nan")}, ValueError, "density must be from 0.0 to 1.0, not nan"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stack", [STACK, AdapterStack()], ids=["merged", "empty"])
def test_options_that_lorax_could_not_take_are_refused_whatever_the_stack(
    stack: AdapterStack, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        lorax_parameters(stack, ADAPTERS, **options)
    assert str(raised.value) == message


# vLLM.


class LoraModules(argparse.Action):
    """Reads the option as vLLM 0.33.0 does."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        modules = []
        assert isinstance(values, list)
        for item in values:
            if "=" in item and "," not in item:
                name, path = item.split("=", 1)
                modules.append({"name": name, "path": path})
            else:
                modules.append(json.loads(item))
        setattr(namespace, self.dest, modules)


def read_by_vllm(arguments: Sequence[str]) -> object:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lora-modules", nargs="+", action=LoraModules)
    return parser.parse_args(["--lora-modules", *arguments]).lora_modules


def test_vllm_gets_ids_and_sources() -> None:
    assert vllm_lora_modules(ADAPTERS) == [
        "bonsai:code=adapters/code",
        "bonsai:math=adapters/math",
        "bonsai:law=adapters/law",
    ]


def test_vllm_gets_nothing_for_no_adapters() -> None:
    assert vllm_lora_modules([]) == []


def test_vllm_gets_the_adapters_of_a_registry(registry: AdapterRegistry) -> None:
    assert vllm_lora_modules(registry) == vllm_lora_modules(ADAPTERS)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraAdapter("code", "bonsai", "adapters/a,b"),
        LoraAdapter("a,b", "bonsai", "adapters/code"),
        LoraAdapter("a=b", "bonsai", "adapters/code"),
        LoraAdapter("code", "bonsai", "s3://bucket/key?version=2"),
        LoraAdapter("code", "--bonsai", "adapters/code"),
        LoraAdapter("Grüße", "bonsai", 'adapters/"a=b"'),
    ],
    ids=lambda adapter: f"{adapter.id}={adapter.source}",
)
def test_vllm_gets_json_where_the_short_form_would_be_misread(adapter: LoraAdapter) -> None:
    [argument] = vllm_lora_modules([adapter])
    assert json.loads(argument) == {"name": adapter.id.value, "path": adapter.source}
    assert read_by_vllm([argument]) == [json.loads(argument)]


def test_vllm_is_told_the_base_if_asked() -> None:
    assert [json.loads(argument) for argument in vllm_lora_modules([CODE], base_model_name=True)] == [
        {"name": "bonsai:code", "path": "adapters/code", "base_model_name": "bonsai"}
    ]


@pytest.mark.parametrize("seed", range(200))
def test_vllm_and_we_read_back_what_we_write(seed: int) -> None:
    generator = random.Random(seed)

    def text(shortest: int) -> str:
        return "".join(generator.choices("a-=,:{}\"[] \\'ü.", k=generator.randint(shortest, 6)))

    base = text(0)
    adapters = [LoraAdapter(text(1), base, text(0)) for _ in range(4)]
    arguments = vllm_lora_modules(adapters)
    assert read_by_vllm(arguments) == [{"name": each.id.value, "path": each.source} for each in adapters], arguments
    assert parse_vllm_lora_modules(arguments, base_model=base) == adapters, arguments
    arguments = vllm_lora_modules(adapters, base_model_name=True)
    assert parse_vllm_lora_modules(arguments, base_model="another") == adapters, arguments


@pytest.mark.parametrize(
    ("argument", "adapter"),
    [
        ("sql=adapters/sql", LoraAdapter("sql", "bonsai", "adapters/sql")),
        ("bonsai:sql=adapters/sql", LoraAdapter("sql", "bonsai", "adapters/sql")),
        ("llama:sql=adapters/sql", LoraAdapter("llama:sql", "bonsai", "adapters/sql")),
        ("bonsai:bonsai:sql=sql", LoraAdapter("bonsai:sql", "bonsai", "sql")),
        ("sql=s3://sql?version=2", LoraAdapter("sql", "bonsai", "s3://sql?version=2")),
        ("sql=", LoraAdapter("sql", "bonsai", "")),
        ('{"name": "sql", "path": "a,b"}', LoraAdapter("sql", "bonsai", "a,b")),
        ('{"name": "sql", "path": "a=b"}', LoraAdapter("sql", "bonsai", "a=b")),
        ('{"name": "sql", "path": "a", "base_model_name": null}', LoraAdapter("sql", "bonsai", "a")),
        ('{"name": "sql", "path": "a", "base_model_name": "llama"}', LoraAdapter("sql", "llama", "a")),
        ('{"name": "llama:sql", "path": "a", "base_model_name": "llama"}', LoraAdapter("sql", "llama", "a")),
        ('{"name": "sql", "path": "a", "is_3d_lora_weight": false}', LoraAdapter("sql", "bonsai", "a")),
        # Without a comma even this is name=path to vLLM.
        ('{"name"=1}', LoraAdapter('{"name"', "bonsai", "1}")),
    ],
)
def test_an_argument_is_read_as_vllm_reads_it(argument: str, adapter: LoraAdapter) -> None:
    assert parse_vllm_lora_modules([argument], base_model="bonsai") == [adapter]


def test_arguments_are_read_in_their_order_and_empty_ones_are_skipped() -> None:
    arguments = iter(["", "math=m", '{"name": "code", "path": "c"}', ""])
    adapters = parse_vllm_lora_modules(arguments, base_model=ModelId("bonsai"))
    assert [(adapter.id, adapter.source) for adapter in adapters] == [
        (ModelId("bonsai:math"), "m"),
        (ModelId("bonsai:code"), "c"),
    ]


def test_no_arguments_are_no_adapters() -> None:
    assert parse_vllm_lora_modules([], base_model="bonsai") == []


@pytest.mark.parametrize(
    "argument",
    [
        "sql",
        "a=x,b=y",
        "{",
        "[" * 100_000,
        "null",
        "[]",
        '["name", "path"]',
        '[{"name": "sql", "path": "a"}]',
        "{}",
        '{"name": "sql"}',
        '{"path": "a", "base_model_name": "b"}',
        '{"name": "sql", "path": "a", "rank": 8}',
        '{"name": 1, "path": "a"}',
        '{"name": "sql", "path": null}',
        '{"name": "sql", "path": "a", "base_model_name": 1}',
        '{"name": "sql", "path": "a", "is_3d_lora_weight": true}',
        '{"name": "sql", "path": "a", "is_3d_lora_weight": 1}',
        '{"name": "sql", "path": "a", "is_3d_lora_weight": null}',
    ],
    ids=lambda argument: argument[:60],
)
def test_an_argument_that_vllm_could_not_read_is_shown(argument: str) -> None:
    with pytest.raises(
        ValueError, match=r"^arguments must each be name=path or a JSON object with text as name"
    ) as raised:
        parse_vllm_lora_modules(["math=m", argument], base_model="bonsai")
    assert str(raised.value).endswith(f", not {argument!r}")


@pytest.mark.parametrize("argument", ["=a", "bonsai:=a", '{"name": "", "path": "a"}'])
def test_an_adapter_needs_a_name_besides_its_bases(argument: str) -> None:
    with pytest.raises(ValueError, match=r"^arguments must have a name each, besides the base's id, not ") as raised:
        parse_vllm_lora_modules([argument], base_model="bonsai")
    assert str(raised.value).endswith(repr(argument))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sql=a", "arguments must be an iterable of str, not 'sql=a'"),
        (None, "arguments must be an iterable of str, not None"),
        ([None], "arguments must hold str objects, not None"),
        ([{"name": "sql", "path": "a"}], "arguments must hold str objects, not {'name': 'sql', 'path': 'a'}"),
    ],
    ids=str,
)
def test_arguments_are_text(arguments: Iterable[str], message: str) -> None:
    with pytest.raises(TypeError) as raised:
        parse_vllm_lora_modules(arguments, base_model="bonsai")
    assert str(raised.value) == message


def test_the_base_of_the_arguments_is_a_name() -> None:
    with pytest.raises(TypeError, match=r"^base_model must be a str or a ModelId, not None$"):
        parse_vllm_lora_modules([], base_model=None)  # type: ignore[arg-type]


def test_vllm_loads_an_adapter_under_its_id() -> None:
    assert vllm_load_lora_adapter(CODE) == {"lora_name": "bonsai:code", "lora_path": "adapters/code"}


def test_vllm_loads_an_adapter_in_place_if_asked() -> None:
    assert vllm_load_lora_adapter(CODE, load_inplace=True) == {
        "lora_name": "bonsai:code",
        "lora_path": "adapters/code",
        "load_inplace": True,
    }


def test_vllm_unloads_an_adapter_by_its_id() -> None:
    assert vllm_unload_lora_adapter(CODE) == {"lora_name": "bonsai:code"}


@pytest.mark.parametrize("function", [vllm_load_lora_adapter, vllm_unload_lora_adapter])
def test_only_an_adapter_is_loaded_or_unloaded(function: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"^adapter must be a LoraAdapter, not 'bonsai:code'$"):
        function("bonsai:code")


@pytest.mark.parametrize("function", [vllm_lora_modules, lambda adapters: lorax_parameters(STACK, adapters)])
def test_adapters_are_adapters(function: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"^adapters must be an iterable of LoraAdapter objects, not LoraAdapter"):
        function(CODE)
    with pytest.raises(TypeError, match=r"^adapters must hold LoraAdapter objects, not 'code'$"):
        function([CODE, "code"])


@pytest.mark.parametrize("function", [vllm_load_lora_adapter, vllm_unload_lora_adapter])
def test_a_version_may_have_a_name_of_its_own_in_vllm(function: Callable[..., dict[str, object]]) -> None:
    assert function(CODE, lora_name="bonsai:code@2")["lora_name"] == "bonsai:code@2"


# SGLang.


def test_sglang_takes_adapters_by_their_own_names() -> None:
    assert sglang_lora_paths([CODE, LoraAdapter("v1:math", "bonsai", "org/math")]) == [
        "code=adapters/code",
        "v1:math=org/math",
    ]
    assert sglang_load_lora_adapter(CODE) == {"lora_name": "code", "lora_path": "adapters/code"}
    assert sglang_unload_lora_adapter(CODE) == {"lora_name": "code"}
    assert sglang_load_lora_adapter(CODE, lora_name="code-2") == {"lora_name": "code-2", "lora_path": "adapters/code"}
    assert sglang_unload_lora_adapter(CODE, lora_name="code-2") == {"lora_name": "code-2"}


def read_by_sglang(argument: str) -> tuple[str, str]:
    """Return the name and the path that SGLang reads from an argument of ``--lora-paths``."""
    argument = argument.strip()
    assert not argument.startswith("-")
    if argument.startswith("{") and argument.endswith("}"):
        values = json.loads(argument)
        return values["lora_name"], values["lora_path"]
    name, _, path = argument.partition("=")
    return name, path


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a=b", "path"),
        ("code", "path=x"),
        (" code", "path"),
        ("code", "path "),
        ("-code", "path"),
        ("{code", "path}"),
        ("code", "a,b"),
        ("c\u00f6de", "C:\\adapters"),
    ],
)
def test_sglang_reads_an_argument_as_it_was_meant(name: str, source: str) -> None:
    [argument] = sglang_lora_paths([LoraAdapter(name, "bonsai", source)])
    assert read_by_sglang(argument) == (name, source)


def test_two_adapters_of_one_name_cannot_be_told_apart_by_sglang() -> None:
    with pytest.raises(ValueError, match="adapters must have a name each for SGLang, not 'code' again"):
        sglang_lora_paths([CODE, LoraAdapter("code", "llama", "adapters/other")])


@pytest.mark.parametrize(
    "function",
    [vllm_load_lora_adapter, vllm_unload_lora_adapter, sglang_load_lora_adapter, sglang_unload_lora_adapter],
)
def test_a_name_in_an_engine_is_text_that_is_not_empty(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="lora_name must not be empty"):
        function(CODE, lora_name="")
    with pytest.raises(TypeError, match="lora_name must be a str or None, not 5"):
        function(CODE, lora_name=5)
    with pytest.raises(TypeError, match="adapter must be a LoraAdapter, not 'code'"):
        function("code")


# Leases.


def test_a_lease_stands_for_the_adapter_that_was_leased() -> None:
    models = ModelRegistry()
    models.register(ModelEndpoint("bonsai", "qwen3-8b"))
    AdapterRegistry(models).load(CODE)
    with ModelRouter(models).lease("bonsai:code") as lease:
        assert llama_cpp_lora(lease, ["math", "code"]) == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
        assert peft_weighted_adapter(lease, "blend")["adapters"] == ["code"]
        assert lorax_parameters(lease) == {"adapter_id": "adapters/code"}
    with ModelRouter(models).lease("bonsai") as lease:
        assert llama_cpp_lora(lease, ["code"]) == [{"id": 0, "scale": 0.0}]
        assert lorax_parameters(lease) == {}
        with pytest.raises(ValueError, match="stack must hold an adapter for PEFT"):
            peft_weighted_adapter(lease, "blend")


@pytest.mark.parametrize("name", ["", "a.b", "."])
def test_a_name_that_pytorch_refuses_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="adapter_name must be a name without a dot, and not empty"):
        peft_weighted_adapter(AdapterStack().add("code", 1.0), name)


@pytest.mark.parametrize("name", ["keys", "pop", "get", "to", "type", "train", "training", "_modules", "__len__"])
def test_the_name_of_an_attribute_that_pytorch_refuses_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="adapter_name must not be the name of an attribute of PyTorch") as raised:
        peft_weighted_adapter(STACK, name)
    assert str(raised.value).endswith(f", not {name!r}")


@pytest.mark.parametrize("name", ["blend", "base:code+math", "Keys", "key", "weight", "lora_A", "a/b", "_mine", " "])
def test_a_name_that_pytorch_takes_is_taken(name: str) -> None:
    assert peft_weighted_adapter(STACK, name)["adapter_name"] == name

"""Has PEFT blend the adapters of a tiny model, and compares the result with the weighted sum of their deltas."""

import math
from pathlib import Path
from typing import Any

import pytest

from bonsai_routing.adapters import AdapterStack
from bonsai_routing.engines import peft_weighted_adapter
from bonsai_routing.lora import LoraAdapter

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")

SEED = 5

# Ranks, alphas and layers all differ, and the rank-stabilised one is not the first.
ADAPTERS: dict[str, dict[str, Any]] = {
    "code": {"r": 2, "lora_alpha": 8, "target_modules": ["first", "second"]},
    "math": {"r": 3, "lora_alpha": 5, "target_modules": ["first", "second"], "use_rslora": True},
    "law": {"r": 2, "lora_alpha": 3, "target_modules": ["second"]},
}
SCALINGS = {"code": 8 / 2, "math": 5 / math.sqrt(3), "law": 3 / 2}
LAYERS = {"first": (8, 6), "second": (6, 4)}

STACKS = {
    "two": AdapterStack().add("code", 0.75).add("math", 0.5),
    "one of them negative": AdapterStack().add("code", 0.75).add("math", -0.5),
    "the first negative": AdapterStack().add("code", -1.25).add("math", 0.5),
    "one of weight zero": AdapterStack().add("code", 0.0).add("math", 2.0),
    "three, not all on each layer": AdapterStack().add("law", 0.25).add("math", -0.5).add("code", 1.5),
    "one twice": AdapterStack().add("code", 0.25).add("math", 1.0).add("code", 0.5),
    "a lone one": AdapterStack().add("code", 0.75),
    "a lone one, negative": AdapterStack().add("code", -0.75),
}


@pytest.fixture
def model() -> Any:
    """Return a model of two layers with the three adapters, whose matrices are all random."""
    torch.manual_seed(SEED)
    layers = {name: torch.nn.Linear(*size, dtype=torch.float64) for name, size in LAYERS.items()}
    model: Any = None
    for name, values in ADAPTERS.items():
        config = peft.LoraConfig(**values)
        if model is None:
            model = peft.get_peft_model(torch.nn.ModuleDict(layers), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model


def layer(model: Any, name: str) -> Any:
    return model.base_model.model[name]


def weighted_sum(model: Any, stack: AdapterStack, where: str) -> Any:
    """Return the sum of what the adapters of *stack* add to a layer, computed without PEFT."""
    inputs, outputs = LAYERS[where]
    total = torch.zeros(outputs, inputs, dtype=torch.float64)
    for ref in stack.adapters:
        if where in ADAPTERS[ref.name]["target_modules"]:
            a, b = layer(model, where).lora_A[ref.name].weight, layer(model, where).lora_B[ref.name].weight
            total += ref.weight * SCALINGS[ref.name] * (b @ a)
    return total.detach()


def blended(model: Any, where: str) -> Any:
    return layer(model, where).get_delta_weight("blend").detach()


def assert_equal(one: Any, other: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def tolerance(stack: AdapterStack) -> float:
    # PEFT makes a lone adapter "linear", for which it takes the weights in single precision.
    return 1e-6 if len(stack) == 1 else 1e-12


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_blend_is_the_weighted_sum_of_the_deltas(model: Any, stack: AdapterStack) -> None:
    model.add_weighted_adapter(**peft_weighted_adapter(stack, "blend"))
    for where in LAYERS:
        expected = weighted_sum(model, stack, where)
        assert expected.abs().max() > 0.1
        assert_equal(blended(model, where), expected, tolerance(stack))


def test_a_model_with_the_blend_active_computes_with_the_weighted_sum(model: Any) -> None:
    stack = STACKS["one of them negative"]
    model.add_weighted_adapter(**peft_weighted_adapter(stack, "blend"))
    model.set_adapter("blend")
    first = layer(model, "first")
    question = torch.randn(3, 8, dtype=torch.float64)
    delta = weighted_sum(model, stack, "first")
    assert_equal(first(question).detach(), first.base_layer(question).detach() + question @ delta.T)


def test_the_rank_of_the_blend_is_the_sum_of_the_ranks(model: Any) -> None:
    model.add_weighted_adapter(**peft_weighted_adapter(STACKS["one twice"], "blend"))
    assert model.peft_config["blend"].r == 2 + 3


def test_linear_is_not_the_weighted_sum(model: Any) -> None:
    stack = AdapterStack().add("code", 0.75).add("law", 0.5)
    model.add_weighted_adapter(**peft_weighted_adapter(stack, "blend", combination_type="linear"))
    assert (blended(model, "second") - weighted_sum(model, stack, "second")).abs().max() > 0.1


def test_what_a_combination_needs_besides_is_passed_beside(model: Any) -> None:
    stack = STACKS["one of them negative"]
    model.add_weighted_adapter(**peft_weighted_adapter(stack, "blend", combination_type="svd"), svd_rank=4)
    # The layer is 6 by 4, so no rank is lost.
    assert_equal(blended(model, "second"), weighted_sum(model, stack, "second"))


def test_a_rank_stabilised_adapter_in_front_makes_the_blend_too_strong(model: Any) -> None:
    stack = AdapterStack().add("math", 0.5).add("code", 0.75)
    model.add_weighted_adapter(**peft_weighted_adapter(stack, "blend"))
    for where in LAYERS:
        assert_equal(blended(model, where), weighted_sum(model, stack, where) * math.sqrt(3 + 2))


@pytest.mark.parametrize("names", [["math"], ["math", "code"]], ids="+".join)
def test_dividing_the_weights_by_the_root_of_the_new_rank_makes_up_for_that(model: Any, names: list[str]) -> None:
    rank = sum(ADAPTERS[name]["r"] for name in names)
    stack, divided = AdapterStack(), AdapterStack()
    for name in names:
        stack, divided = stack.add(name, 0.75), divided.add(name, 0.75 / math.sqrt(rank))
    model.add_weighted_adapter(**peft_weighted_adapter(divided, "blend"))
    for where in LAYERS:
        assert_equal(blended(model, where), weighted_sum(model, stack, where), tolerance(stack))


def test_peft_leaves_an_adapter_of_that_name_as_it_is(model: Any) -> None:
    model.add_weighted_adapter(**peft_weighted_adapter(STACKS["two"], "blend"))
    before = blended(model, "first")
    model.add_weighted_adapter(**peft_weighted_adapter(STACKS["the first negative"], "blend"))
    assert torch.equal(blended(model, "first"), before)
    model.delete_adapter("blend")
    model.add_weighted_adapter(**peft_weighted_adapter(STACKS["the first negative"], "blend"))
    assert_equal(blended(model, "first"), weighted_sum(model, STACKS["the first negative"], "first"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_peft_saves_is_read_with_its_rank_and_its_scaling(model: Any, name: str, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    adapter = LoraAdapter.from_peft(tmp_path / name, base_model="bonsai-8b")
    second = layer(model, "second")
    assert adapter == LoraAdapter(
        name, "bonsai-8b", str(tmp_path / name), rank=second.r[name], scaling=second.scaling[name]
    )
    assert adapter.scaling == SCALINGS[name]


def test_a_blend_that_peft_saves_is_read_too(model: Any, tmp_path: Path) -> None:
    model.add_weighted_adapter(**peft_weighted_adapter(STACKS["two"], "blend"))
    model.save_pretrained(tmp_path)
    adapter = LoraAdapter.from_peft(tmp_path / "blend", base_model="bonsai-8b")
    assert (adapter.rank, adapter.scaling) == (5, 1.0)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "type", "train"])
def test_pytorch_refuses_the_names_that_are_said_to_be_refused(model: Any, name: str) -> None:
    with pytest.raises(KeyError):
        model.add_weighted_adapter(["code", "math"], [0.5, 0.5], name, combination_type="cat")


@pytest.mark.parametrize("kind", [torch.nn.ModuleDict, torch.nn.ParameterDict])
def test_every_attribute_that_pytorch_refuses_as_a_name_is_refused(kind: Any) -> None:
    for name in dir(kind()):
        with pytest.raises(ValueError, match="adapter_name must not be the name of an attribute"):
            peft_weighted_adapter(STACKS["two"], name)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_loading_an_adapter_of_these_kinds_changes_the_base(kind: str) -> None:
    torch.manual_seed(SEED)
    base = torch.nn.ModuleDict({"first": torch.nn.Linear(8, 6)})
    before = base["first"].weight.detach().clone()
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["first"], init_lora_weights=kind)
    model = peft.get_peft_model(base, config, adapter_name="code")
    with model.disable_adapter():
        assert not torch.allclose(layer(model, "first").base_layer.weight, before)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_blend_that_begins_with_an_adapter_of_these_kinds_changes_the_base_again(kind: str) -> None:
    torch.manual_seed(SEED)
    values: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["first"]}
    for names, changes in ((["special", "plain"], True), (["plain", "special"], False)):
        base = torch.nn.ModuleDict({"first": torch.nn.Linear(8, 6)})
        model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=kind, **values), adapter_name="special")
        model.add_adapter("plain", peft.LoraConfig(**values))
        before = layer(model, "first").base_layer.weight.detach().clone()
        stack = AdapterStack().add(names[0], 0.5).add(names[1], 0.5)
        model.add_weighted_adapter(**peft_weighted_adapter(stack, "blend"))
        assert torch.equal(layer(model, "first").base_layer.weight, before) is not changes


def test_adapters_of_kasa_combine_with_their_kind_only_and_not_exactly() -> None:
    torch.manual_seed(SEED)

    def config(**values: Any) -> Any:
        return peft.LoraConfig(r=2, lora_alpha=4, target_modules=["first"], **values)

    model = peft.get_peft_model(
        torch.nn.ModuleDict({"first": torch.nn.Linear(8, 6, bias=False)}),
        config(kasa_config=peft.KasaConfig()),
        adapter_name="code",
    )
    with pytest.raises(ValueError, match="KaSA"):
        model.add_adapter("plain", config())
    model.add_adapter("math", config(kasa_config=peft.KasaConfig()))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.add_weighted_adapter(["code", "math"], [0.5, 0.5], "blend", combination_type="cat")
    inputs = torch.randn(3, 8)

    def added(name: str) -> Any:
        model.set_adapter(name)
        with torch.no_grad():
            return layer(model, "first")(inputs) - inputs @ layer(model, "first").base_layer.weight.T

    assert not torch.allclose(added("blend"), 0.5 * added("code") + 0.5 * added("math"), atol=0.1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"second": 3}},
        {"rank_pattern": {"second": 3}, "alpha_pattern": {"second": 6}},
        {"rank_pattern": {"second": 8}, "alpha_pattern": {"second": 8}, "use_rslora": True},
        {"alpha_pattern": {"first": 4}},
        {"alpha_pattern": {"first": 1}},
    ],
    ids=repr,
)
def test_rank_and_scaling_are_read_as_peft_computes_them(tmp_path: Path, values: dict[str, Any]) -> None:
    layers = {name: torch.nn.Linear(*size) for name, size in LAYERS.items()}
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["first", "second"], **values)
    model = peft.get_peft_model(torch.nn.ModuleDict(layers), config)
    model.save_pretrained(str(tmp_path))
    adapter = LoraAdapter.from_peft(tmp_path, base_model="bonsai", name="code")
    computed = [layer(model, name) for name in LAYERS]
    assert adapter.rank == max(each.r["default"] for each in computed)
    scalings = {each.scaling["default"] for each in computed}
    assert adapter.scaling == (scalings.pop() if len(scalings) == 1 else None)
    # PEFT saves no base for a model that has no name.
    assert adapter.trained_on is None

"""What engines take for our stacks and adapters, as plain data: PEFT, llama.cpp, LoRAX, vLLM and SGLang.

Every adapter has a *delta*: the product of its two matrices times its scaling, what it adds to the base's weights.
A stack asks for the sum of its adapters' deltas, each times its weight; each function says what its engine makes of it.
An adapter that is in a stack twice counts once, with the sum of its weights.
A :class:`Lease` in place of a stack stands for the adapter that was leased, with the weight 1.0, or for an empty stack
if no adapter was leased.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from bonsai_routing._checks import check_name, is_finite
from bonsai_routing.adapters import AdapterStack
from bonsai_routing.errors import ModelNotFoundError
from bonsai_routing.leases import Lease
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.stacks import StackLease

__all__ = [
    "llama_cpp_lora",
    "lorax_parameters",
    "parse_vllm_lora_modules",
    "peft_weighted_adapter",
    "sglang_load_lora_adapter",
    "sglang_lora_paths",
    "sglang_unload_lora_adapter",
    "vllm_load_lora_adapter",
    "vllm_lora_modules",
    "vllm_unload_lora_adapter",
]

# What LoRAX's router knows; on another word it fails without saying why.
_MERGE_STRATEGIES = ("linear", "ties", "dare_linear", "dare_ties")
_SIGN_METHODS = ("total", "frequency")

# The attributes of PyTorch's ModuleDict and ParameterDict, in which PEFT stores an adapter's matrices by its name.
# Each refuses the name of an attribute of its own. Source: dir() of both in PyTorch 2.13.0.
_TORCH_ATTRIBUTE = re.compile(
    r"__\w+__|T_destination|add_module|apply|bfloat16|buffers|call_super_init|children|clear|compile|copy|cpu|cuda|double"
    r"|dump_patches|eval|extra_repr|float|forward|fromkeys|get|get_(?:buffer|extra_state|parameter|submodule)|half|ipu"
    r"|items|keys|load_state_dict|modules|mtia|named_(?:buffers|children|modules|parameters)|parameters|pop|popitem"
    r"|register_(?:buffer|module|parameter|(?:full_)?backward_(?:pre_)?hook|forward_(?:pre_)?hook)"
    r"|register_(?:load_)?state_dict_(?:pre|post)_hook|requires_grad_|set_(?:extra_state|submodule)|setdefault"
    r"|share_memory|state_dict|to|to_empty|train|training|type|update|values|xpu|zero_grad"
    r"|_apply|_buffers|_call_impl|_compiled_call_impl|_get_backward_(?:pre_)?hooks|_get_name|_is_full_backward_hook|_keys"
    r"|_key_to_attr|_maybe_warn_non_full_backward_hook|_modules|_named_members|_non_persistent_buffers_set|_parameters"
    r"|_replicate_for_data_parallel|_save_to_state_dict|_slow_forward|_version|_wrapped_call_impl"
    r"|_backward_(?:pre_)?hooks|_forward_(?:pre_)?hooks(?:_with_kwargs)?|_forward_hooks_always_called"
    r"|_load_from_state_dict|_load_state_dict_(?:pre|post)_hooks|_state_dict_(?:pre_)?hooks"
    r"|_register_(?:load_state_dict_pre|state_dict)_hook"
)


def peft_weighted_adapter(
    stack: AdapterStack | StackLease | Lease, adapter_name: str, *, combination_type: str = "cat"
) -> dict[str, object]:
    """Return the keyword arguments with which PEFT's ``LoraModel.add_weighted_adapter`` makes one adapter of *stack*.

    The stack's names are those of the adapters in the PEFT model; a :class:`StackLease` gives its adapters' names.
    *adapter_name* becomes the new adapter's.
    PyTorch refuses an empty name, a name with a dot, and the name of an attribute of its ``ModuleDict`` or, for
    embeddings, ``ParameterDict``, such as ``keys``, ``type`` or ``train``. These raise ``ValueError`` here.
    PEFT registers a name before PyTorch refuses it, so the model would have a broken adapter afterwards.
    PEFT changes nothing, and says nothing, if an adapter of that name is there: delete it first.

    With ``"cat"``, in PEFT from 0.7.1 on, the new delta is exactly the weighted sum, whatever the signs of the weights,
    and its rank is the sum of the ranks.
    ``"svd"`` approximates that with fewer ranks, but up to PEFT 0.20.0 it counts each scaling twice.
    ``"linear"`` is a rough approximation, and the others change the deltas or the matrices first.
    What else a combination needs, such as ``density`` or ``svd_rank``, is to be passed beside these.
    PEFT makes a lone adapter ``"linear"``, which is then exact too, to single precision, but with a negative weight
    only from PEFT 0.19.0 on.

    PEFT gives the new adapter the first one's ``use_rslora``, and thereby, if that is true, the square root of the new
    rank as a factor too much.
    So put an adapter without it first; if all have it, divide the weights by the square root of the new rank.
    It leaves out what DoRA and ``lora_bias`` add.

    When PEFT loads an adapter whose ``init_lora_weights`` is PiSSA or OLoRA, it changes the base's weights in the
    model, also for every other adapter, for every blend and for ``disable_adapter``.
    If such an adapter is the first of the stack, PEFT changes them once more for the new one.
    Convert it to a plain adapter before you blend it, with PEFT's ``path_initial_model_for_weight_conversion``.
    A KaSA adapter cannot be converted: PEFT combines it with others of its kind only, and a blend of these leaves out
    their diagonals.

    Raises ``ValueError`` when the stack is empty: the base alone is what PEFT's ``disable_adapter`` gives.
    Source: PEFT 0.21.2, ``peft/tuners/lora/model.py``, and tried with it and PyTorch 2.13.0.

    >>> stack = AdapterStack().add("code", 0.75).add("math", -0.25)
    >>> peft_weighted_adapter(stack, "blend")
    {'adapters': ['code', 'math'], 'weights': [0.75, -0.25], 'adapter_name': 'blend', 'combination_type': 'cat'}
    """
    weights = _weights(stack)
    for argument, text in (("adapter_name", adapter_name), ("combination_type", combination_type)):
        if not isinstance(text, str):
            raise TypeError(f"{argument} must be a str, not {text!r}")
    if not weights:
        raise ValueError(f"stack must hold an adapter for PEFT, not {stack!r}")
    if not adapter_name or "." in adapter_name:
        raise ValueError(f"adapter_name must be a name without a dot, and not empty, for PyTorch, not {adapter_name!r}")
    if _TORCH_ATTRIBUTE.fullmatch(adapter_name):
        raise ValueError(
            f"adapter_name must not be the name of an attribute of PyTorch's ModuleDict, not {adapter_name!r}"
        )
    if adapter_name in weights:
        raise ValueError(f"adapter_name must be the name of a new adapter, not {adapter_name!r}, which is in the stack")
    return {
        "adapters": [*weights],
        "weights": [*weights.values()],
        "adapter_name": adapter_name,
        "combination_type": combination_type,
    }


def llama_cpp_lora(
    stack: AdapterStack | StackLease | Lease, ids: Sequence[str] | Mapping[str, int]
) -> list[dict[str, int | float]]:
    """Return what the field ``lora`` of a request to llama.cpp's server must be, in the order of *ids*.

    *ids* names all adapters of the server, in the order in which its command line loads them, or maps their names to
    the ids that ``GET /lora-adapters`` gives.
    A scale, of any sign, multiplies the adapter's own scaling, and the server adds the deltas up: the weighted sum.
    But it takes alpha / rank for that scaling, also where PEFT's ``use_rslora`` means alpha / sqrt(rank): give such an
    adapter a weight that is the square root of its rank larger.
    Its files hold one alpha for all layers, so PEFT's ``alpha_pattern`` is lost.
    An alpha of 0 means a scaling of 1 to it, where PEFT adds nothing: give such an adapter the weight 0.0.

    Every adapter is listed, with scale 0.0 if the stack has it not, so an empty stack is the base alone.
    Send the list with requests for the base alone, too: for an absent list, and in newer servers for an empty one, the
    server takes scales of its own instead, which are 1.0 unless its command line or ``POST /lora-adapters`` says
    otherwise.
    The list is empty only if *ids* is.
    The server runs requests of different scales one after another, not in one batch.

    Raises :class:`ModelNotFoundError` for an adapter that the server does not have.
    Source: llama.cpp, ``tools/server/README.md``, ``server-context.cpp``, ``src/llama-adapter.h`` and
    ``convert_lora_to_gguf.py``.

    >>> llama_cpp_lora(AdapterStack().add("math", 0.5), ["code", "math"])
    [{'id': 0, 'scale': 0.0}, {'id': 1, 'scale': 0.5}]
    """
    weights = _weights(stack)
    known = _ids(ids)
    for name in weights:
        if name not in known:
            raise ModelNotFoundError(name)
    return [{"id": id, "scale": weights.get(name, 0.0)} for name, id in known.items()]


def lorax_parameters(
    stack: AdapterStack | StackLease | Lease,
    adapters: Iterable[LoraAdapter] = (),
    *,
    merge_strategy: str = "linear",
    density: float = 1.0,
    majority_sign_method: str = "total",
) -> dict[str, object]:
    """Return what the ``parameters`` of a request to LoRAX must contain for *stack*, beside those for something else.

    *adapters* are those that the stack may name, and LoRAX's ids are their sources; a :class:`StackLease` has its own.
    Add ``adapter_source`` where these are not on Hugging Face's hub; all of a stack must come from the same place.
    *density*, from 0.0 to 1.0, is the part of each matrix that ``ties``, ``dare_linear`` and ``dare_ties`` keep, and
    *majority_sign_method*, ``total`` or ``frequency``, how the two with ``ties`` elect signs.

    This is not the weighted sum of the deltas.
    LoRAX weighs and merges the two matrices of all adapters separately, without normalising the weights, and gives the
    product the first adapter's scaling: with ``linear`` it is quadratic in the weights and has products of one
    adapter's matrix with another's.
    All must have the same rank.

    An adapter of weight 0.0 is left out, and if none is left the result is ``{}``, the base alone.
    A lone adapter becomes ``adapter_id``, and must have the weight 1.0, because LoRAX ignores the weight.

    Raises :class:`ModelNotFoundError` for a name that is not among *adapters*, and ``ValueError`` for a negative weight
    too, because its sign would be on both matrices and cancel.
    Source: LoRAX, ``server/lorax_server/utils/merges/strategies.py`` and ``clients/python/lorax/types.py``.

    >>> adapters = [LoraAdapter("code", "bonsai-8b", "org/code"), LoraAdapter("math", "bonsai-8b", "org/math")]
    >>> lorax_parameters(AdapterStack().add("code", 0.75).add("math", 0.5), adapters)["merged_adapters"]["weights"]
    [0.75, 0.5]
    >>> lorax_parameters(AdapterStack().add("code", 1.0), adapters)
    {'adapter_id': 'org/code'}
    """
    weights = _weights(stack)
    sources: dict[str, str] = {}
    if isinstance(stack, StackLease):
        members = [member.adapter for member in stack.members]
    elif isinstance(stack, Lease):
        members = [] if stack.adapter is None else [stack.adapter]
    else:
        members = _adapters(adapters)
    for adapter in members:
        if sources.setdefault(adapter.name, adapter.source) != adapter.source:
            raise ValueError(f"adapters must have one source for each name, not another for {adapter!r}")
    for argument, word, known in (
        ("merge_strategy", merge_strategy, _MERGE_STRATEGIES),
        ("majority_sign_method", majority_sign_method, _SIGN_METHODS),
    ):
        if word not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, not {word!r}")
    if not isinstance(density, (int, float)) or isinstance(density, bool):
        raise TypeError(f"density must be a number, not {density!r}")
    if not 0 <= density <= 1:
        raise ValueError(f"density must be from 0.0 to 1.0, not {density!r}")
    merged: dict[str, float] = {}
    for name, weight in weights.items():
        if name not in sources:
            raise ModelNotFoundError(name)
        if weight < 0:
            raise ValueError(f"stack must have no negative weight for LoRAX, not {weight!r} for {name!r}")
        if weight > 0:
            merged[name] = weight
    ids = [sources[name] for name in merged]
    if not merged:
        return {}
    if len(merged) == 1:
        [(name, weight)] = merged.items()
        if weight != 1:
            raise ValueError(f"stack must give a lone adapter the weight 1.0 for LoRAX, not {weight!r} for {name!r}")
        return {"adapter_id": ids[0]}
    return {
        "merged_adapters": {
            "ids": ids,
            "weights": [*merged.values()],
            "merge_strategy": merge_strategy,
            # LoRAX's own client requires it, also where it means nothing.
            "density": float(density),
            "majority_sign_method": majority_sign_method,
        }
    }


def vllm_lora_modules(adapters: Iterable[LoraAdapter], *, base_model_name: bool = False) -> list[str]:
    """Return the arguments that vLLM's option ``--lora-modules`` takes for *adapters*, one each, in their order.

    Each adapter is served by the id of its endpoint, ``base:name``, which a request then has as its ``model``.
    vLLM applies one adapter to a request, with the adapter's own scaling; it knows no weights.

    *base_model_name* true tells vLLM each adapter's base too, which is of use if it serves that under several names.
    An argument is ``name=path`` where vLLM reads that right, otherwise a JSON object.
    Write the option once: vLLM forgets all but the last.
    Source: vLLM 0.33.0, ``vllm/entrypoints/common/cli_args.py``.

    >>> vllm_lora_modules([LoraAdapter("code", "bonsai-8b", "adapters/code")])
    ['bonsai-8b:code=adapters/code']
    >>> vllm_lora_modules([LoraAdapter("code", "bonsai-8b", "adapters/code,v2")])
    ['{"name": "bonsai-8b:code", "path": "adapters/code,v2"}']
    """
    arguments: list[str] = []
    for adapter in _adapters(adapters):
        argument = f"{adapter.id}={adapter.source}"
        # A comma means JSON to vLLM, a dash an option, and older ones refuse a second equals sign.
        if base_model_name or argument.startswith("-") or "," in argument or argument.count("=") > 1:
            module = {"name": adapter.id.value, "path": adapter.source}
            if base_model_name:
                module["base_model_name"] = adapter.base_model
            argument = json.dumps(module)
        arguments.append(argument)
    return arguments


def parse_vllm_lora_modules(arguments: Iterable[str], *, base_model: ModelId | str) -> list[LoraAdapter]:
    """Return the adapters that the arguments of vLLM's option ``--lora-modules`` name, in their order.

    Each is read as vLLM does: with an equals sign and no comma it is ``name=path``, otherwise a JSON object with
    ``name``, ``path`` and perhaps ``base_model_name`` and ``is_3d_lora_weight``.
    If the last one is true, the argument is refused, because a :class:`LoraAdapter` cannot keep it.
    An empty one is skipped.
    *base_model* is the id of the base's endpoint for those that have no ``base_model_name``.
    A name that starts with the base's id and a colon loses these, so that the ids and sources which
    :func:`vllm_lora_modules` writes read back.

    Raises ``ValueError`` for what vLLM could not read, and for an adapter without a name.
    Source: vLLM 0.33.0, ``LoRAParserAction`` in ``vllm/entrypoints/common/cli_args.py``.

    >>> [adapter] = parse_vllm_lora_modules(["code=adapters/code"], base_model="bonsai-8b")
    >>> adapter.id, adapter.source
    (ModelId('bonsai-8b:code'), 'adapters/code')
    """
    default = check_name("base_model", base_model)
    if isinstance(arguments, str) or not isinstance(arguments, Iterable):
        raise TypeError(f"arguments must be an iterable of str, not {arguments!r}")
    adapters: list[LoraAdapter] = []
    for argument in arguments:
        if not isinstance(argument, str):
            raise TypeError(f"arguments must hold str objects, not {argument!r}")
        if argument:
            name, path, base = _module(argument)
            base = default if base is None else base
            name = name.removeprefix(f"{base}:")
            if not name:
                raise ValueError(f"arguments must have a name each, besides the base's id, not {argument!r}")
            adapters.append(LoraAdapter(name, base, path))
    return adapters


def vllm_load_lora_adapter(
    adapter: LoraAdapter, *, lora_name: str | None = None, load_inplace: bool = False
) -> dict[str, object]:
    """Return the body of vLLM's ``POST /v1/load_lora_adapter``, which loads *adapter* under the name *lora_name*.

    ``None`` means the id of the adapter's endpoint.

    Give each version of an adapter a name of its own, and publish this name as the handle: a request then names what it
    has leased, the old version goes on serving those that have leased it, and ``on_idle`` unloads it by its handle.
    Under one name, *load_inplace* true replaces what is loaded, which vLLM otherwise refuses.
    Requests that have leased the old weights are then answered with the new ones, also in the middle of an answer.
    If the weights of a mixture of experts are fused, add ``"is_3d_lora_weight": True``, which a :class:`LoraAdapter`
    does not have.
    vLLM stores the prefixes that it has computed by the name of the adapter, and not by its source. So new weights
    under an old name may be answered with prefixes of the old weights, also after an unload: never use a name again.

    vLLM must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, and answers in plain text.
    Source: vLLM 0.33.0, ``vllm/entrypoints/openai/models/serving.py``; for the prefixes
    ``vllm/v1/core/kv_cache_utils.py`` and vLLM's issue 42125.

    >>> vllm_load_lora_adapter(LoraAdapter("code", "bonsai-8b", "adapters/code-2"), lora_name="bonsai-8b:code@2")
    {'lora_name': 'bonsai-8b:code@2', 'lora_path': 'adapters/code-2'}
    """
    body: dict[str, object] = {
        "lora_name": _lora_name(lora_name, _checked(adapter).id.value),
        "lora_path": adapter.source,
    }
    # Left out where it says nothing, because older ones do not know it.
    return body | {"load_inplace": True} if load_inplace else body


def vllm_unload_lora_adapter(adapter: LoraAdapter, *, lora_name: str | None = None) -> dict[str, object]:
    """Return the body of vLLM's ``POST /v1/unload_lora_adapter``, for what is loaded under the name *lora_name*.

    ``None`` means the id of the adapter's endpoint.
    Send it when the last lease of the adapter has ended.
    Source and conditions: those of :func:`vllm_load_lora_adapter`.

    >>> vllm_unload_lora_adapter(LoraAdapter("code", "bonsai-8b", "adapters/code"))
    {'lora_name': 'bonsai-8b:code'}
    """
    return {"lora_name": _lora_name(lora_name, _checked(adapter).id.value)}


def sglang_lora_paths(adapters: Iterable[LoraAdapter]) -> list[str]:
    """Return the arguments that SGLang's option ``--lora-paths`` takes for *adapters*, one each, in their order.

    SGLang's name for an adapter is the adapter's own. In a request, the model ``base:name`` names the server's model,
    which ``--served-model-name`` sets, and then the adapter.
    SGLang applies one adapter to a request, without a weight. Its scaling is alpha / rank in all layers, also where
    PEFT's ``use_rslora`` means alpha / sqrt(rank). It refuses DoRA.
    An argument is ``name=path`` where SGLang reads that right, otherwise a JSON object.
    Write the option once: SGLang forgets all but the last.
    Raises ``ValueError`` when two adapters have the same name, as adapters of two bases may.
    Source: SGLang 0.5.23, ``arg_groups/argparse_actions.py`` and ``lora/lora.py`` in ``sglang/srt``.

    >>> sglang_lora_paths([LoraAdapter("code", "bonsai-8b", "adapters/code")])
    ['code=adapters/code']
    """
    arguments: dict[str, str] = {}
    for adapter in _adapters(adapters):
        name = adapter.name
        if name in arguments:
            raise ValueError(f"adapters must have a name each for SGLang, not {name!r} again")
        argument = f"{name}={adapter.source}"
        # SGLang strips white space, takes braces for JSON, and ends the name at the first equals sign.
        if argument != argument.strip() or argument.startswith(("-", "{")) or "=" in name:
            argument = json.dumps({"lora_name": name, "lora_path": adapter.source})
        arguments[name] = argument
    return [*arguments.values()]


def sglang_load_lora_adapter(adapter: LoraAdapter, *, lora_name: str | None = None) -> dict[str, object]:
    """Return the body of SGLang's ``POST /load_lora_adapter``, which loads *adapter* under the name *lora_name*.

    ``None`` means the adapter's own name; :func:`sglang_lora_paths` says what the name is for.
    SGLang refuses a name that is loaded. So give each version a name of its own, as :func:`vllm_load_lora_adapter`
    explains.
    SGLang must run with ``--enable-lora`` and, if it has no ``--lora-paths``, with ``--max-lora-rank`` and
    ``--lora-target-modules``.
    Source: SGLang 0.5.23, ``managers/io_struct.py`` in ``sglang/srt``.

    >>> sglang_load_lora_adapter(LoraAdapter("code", "bonsai-8b", "adapters/code"))
    {'lora_name': 'code', 'lora_path': 'adapters/code'}
    """
    return {"lora_name": _lora_name(lora_name, _checked(adapter).name), "lora_path": adapter.source}


def sglang_unload_lora_adapter(adapter: LoraAdapter, *, lora_name: str | None = None) -> dict[str, object]:
    """Return the body of SGLang's ``POST /unload_lora_adapter``, for what is loaded under the name *lora_name*.

    ``None`` means the adapter's own name.
    Send it when the last lease of the adapter has ended, and send no request for the name after that: SGLang remembers
    the source, and loads the adapter again for such a request.
    SGLang answers when the requests that use the adapter have ended.
    Source: SGLang 0.5.23, ``managers/tokenizer_control_mixin.py`` and ``managers/tokenizer_manager.py`` in
    ``sglang/srt``.

    >>> sglang_unload_lora_adapter(LoraAdapter("code", "bonsai-8b", "adapters/code"))
    {'lora_name': 'code'}
    """
    return {"lora_name": _lora_name(lora_name, _checked(adapter).name)}


def _weights(stack: AdapterStack | StackLease | Lease) -> dict[str, float]:
    """Return the weight of each adapter of a stack by name, in the order in which they first occur."""
    if isinstance(stack, StackLease):
        pairs = [(member.adapter.name, member.weight) for member in stack.members]
    elif isinstance(stack, AdapterStack):
        pairs = [(ref.name, ref.weight) for ref in stack.adapters]
    elif isinstance(stack, Lease):
        pairs = [] if stack.adapter is None else [(stack.adapter.name, 1.0)]
    else:
        raise TypeError(f"stack must be an AdapterStack, a StackLease or a Lease, not {stack!r}")
    weights: dict[str, float] = {}
    for name, weight in pairs:
        weights[name] = weights.get(name, 0.0) + weight
    for name, weight in weights.items():
        if not is_finite(weight):
            raise ValueError(f"stack must have weights with a finite sum for each name, not {weight!r} for {name!r}")
    return weights


def _ids(ids: Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    """Return the id of each of a server's adapters by name."""
    if isinstance(ids, Mapping):
        pairs = [*ids.items()]
    elif isinstance(ids, Sequence) and not isinstance(ids, str):
        pairs = [(name, id) for id, name in enumerate(ids)]
    else:
        raise TypeError(f"ids must be a sequence of names or a mapping of names to ids, not {ids!r}")
    known: dict[str, int] = {}
    taken: set[int] = set()
    for name, id in pairs:
        if not isinstance(name, str):
            raise TypeError(f"ids must have a str as each name, not {name!r}")
        if not isinstance(id, int) or isinstance(id, bool):
            raise TypeError(f"ids must have an int as each id, not {id!r} for {name!r}")
        if id < 0:
            raise ValueError(f"ids must have an int of 0 or more as each id, not {id!r} for {name!r}")
        if name in known or id in taken:
            raise ValueError(f"ids must have each name and each id once, not {name!r} with {id!r} again")
        known[name] = id
        taken.add(id)
    return known


def _adapters(adapters: Iterable[LoraAdapter]) -> list[LoraAdapter]:
    """Return *adapters* as a list of which each is one."""
    if not isinstance(adapters, Iterable):
        raise TypeError(f"adapters must be an iterable of LoraAdapter objects, not {adapters!r}")
    listed = [*adapters]
    for adapter in listed:
        if not isinstance(adapter, LoraAdapter):
            raise TypeError(f"adapters must hold LoraAdapter objects, not {adapter!r}")
    return listed


def _lora_name(lora_name: str | None, usual: str) -> str:
    """Return the name under which an engine loads an adapter; *usual* if none is given."""
    if lora_name is None:
        return usual
    if not isinstance(lora_name, str):
        raise TypeError(f"lora_name must be a str or None, not {lora_name!r}")
    if not lora_name:
        raise ValueError("lora_name must not be empty")
    return lora_name


def _checked(adapter: LoraAdapter) -> LoraAdapter:
    if not isinstance(adapter, LoraAdapter):
        raise TypeError(f"adapter must be a LoraAdapter, not {adapter!r}")
    return adapter


def _module(argument: str) -> tuple[str, str, str | None]:
    """Return the name, the path, and the base's name or ``None``, of one argument of ``--lora-modules``."""
    if "=" in argument and "," not in argument:
        left, _, right = argument.partition("=")
        return left, right, None
    values: object = None
    cause = None
    try:
        values = json.loads(argument)
    except (ValueError, RecursionError) as error:
        cause = error
    match values:
        case {"name": str(name), "path": str(path), **others}:
            base = others.pop("base_model_name", None)
            layout = others.pop("is_3d_lora_weight", False)
            if (base is None or isinstance(base, str)) and layout is False and not others:
                return name, path, base
    rule = "a JSON object with text as name, path and perhaps base_model_name, and perhaps a false is_3d_lora_weight"
    raise ValueError(f"arguments must each be name=path or {rule}, not {argument!r}") from cause

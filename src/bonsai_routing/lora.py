"""LoRA adapters: what is known of one, and the directory of those that are loaded."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from bonsai_routing._checks import check_name, check_tokens, is_finite, is_rank
from bonsai_routing._futures import futures
from bonsai_routing.adapters import AdapterStack
from bonsai_routing.endpoint import READY, EndpointStatus, ModelEndpoint, with_status
from bonsai_routing.errors import (
    AdapterBaseError,
    AdapterConfigError,
    AdapterLoadedError,
    ModelNotFoundError,
    ModelNotReadyError,
    StaleGenerationError,
)
from bonsai_routing.leases import Lease, Ledger
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry
from bonsai_routing.router import ready

__all__ = ["AdapterRegistry", "LoraAdapter", "StackLease", "StackMember"]


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """What is known of a LoRA adapter.

    *base_model* is the id of the endpoint that it goes on, and *source* where its weights are: a path or a URI, which
    only the engine reads.
    *rank* is the largest rank of its matrices and *scaling* the factor of its product, ``None`` where unknown.
    *max_context_length*, in tokens, may be less than the base's; ``None`` means the base's.
    *trained_on* names the weights that it was trained on, ``None`` where unknown.

    Raises ``TypeError`` or ``ValueError`` for an argument of the wrong type or value.
    """

    name: str
    base_model: str
    source: str
    rank: int | None = field(default=None, kw_only=True)
    scaling: float | None = field(default=None, kw_only=True)
    description: str = field(default="", kw_only=True)
    max_context_length: int | None = field(default=None, kw_only=True)
    trained_on: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for argument in ("name", "base_model", "source", "description"):
            text = getattr(self, argument)
            if not isinstance(text, str):
                raise TypeError(f"{argument} must be a str, not {text!r}")
        if not self.name:
            raise ValueError("name must not be empty")
        if not (self.trained_on is None or isinstance(self.trained_on, str)):
            raise TypeError(f"trained_on must be a str or None, not {self.trained_on!r}")
        if self.rank is not None and not is_rank(self.rank):
            kind = ValueError if type(self.rank) is int else TypeError
            raise kind(f"rank must be an int of 1 or more, not {self.rank!r}")
        if self.scaling is not None and not is_finite(self.scaling):
            kind = ValueError if type(self.scaling) in (int, float) else TypeError
            raise kind(f"scaling must be a finite number, not {self.scaling!r}")
        if self.max_context_length is not None:
            check_tokens("max_context_length", self.max_context_length)

    @property
    def id(self) -> ModelId:
        """The id of the adapter's endpoint: ``base:name``."""
        return ModelId(f"{self.base_model}:{self.name}")

    @classmethod
    def from_peft(
        cls, directory: "str | os.PathLike[str]", *, base_model: ModelId | str, name: str | None = None
    ) -> "LoraAdapter":
        """Return the adapter that PEFT saved in *directory*, whose ``adapter_config.json`` says what it is.

        *name* is the adapter's name, ``None`` for the name of the directory, which becomes its source.
        *rank* becomes the largest of ``r`` and ``rank_pattern``, and *scaling* ``lora_alpha / r``, or
        ``lora_alpha / sqrt(r)`` for a rank-stabilised adapter, as PEFT computes them.
        Raises :class:`AdapterConfigError` when the file is missing, malformed, or not that of a LoRA adapter.
        """
        directory = os.fspath(directory)
        config = _PeftConfig(os.path.join(directory, "adapter_config.json"))
        config.require_lora()
        rank = config.rank()
        return cls(
            os.path.basename(os.path.abspath(directory)) if name is None else name,
            check_name("base_model", base_model),
            directory,
            rank=max([rank, *config.rank_pattern()]),
            scaling=config.alpha() / (math.sqrt(rank) if config.rank_stabilised() else rank),
            trained_on=config.trained_on(),
        )


class _PeftConfig:
    """The contents of an ``adapter_config.json``, and the complaints about them."""

    def __init__(self, path: str) -> None:
        # Imported here because most who import the package never read such a file.
        import json

        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
        except FileNotFoundError as error:
            raise self.error(None, "the file does not exist") from error
        except OSError as error:
            raise self.error(None, f"the file cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise self.error(None, f"the file is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise self.error(None, f"the file must hold a JSON object, not {values!r}")
        self.values: dict[str, object] = values

    def error(self, key: str | None, rule: str) -> AdapterConfigError:
        return AdapterConfigError(self.path, key, rule)

    def required(self, key: str) -> object:
        if key not in self.values:
            raise self.error(key, "is missing")
        return self.values[key]

    def require_lora(self) -> None:
        # mlx-lm writes a file of the same name with keys of its own.
        if "peft_type" not in self.values and self.values.keys() & {"fine_tune_type", "lora_parameters"}:
            raise self.error("peft_type", "is missing: the file was written by mlx-lm, not by PEFT")
        kind = self.required("peft_type")
        if kind != "LORA":
            raise self.error("peft_type", f"must be 'LORA', not {kind!r}")

    def rank(self) -> int:
        value = self.required("r")
        if isinstance(value, int) and is_rank(value):
            return value
        raise self.error("r", f"must be a whole number of 1 or more, not {value!r}")

    def rank_pattern(self) -> list[int]:
        pattern = self.values.get("rank_pattern")
        if pattern is None:
            return []
        if isinstance(pattern, dict) and all(is_rank(rank) for rank in pattern.values()):
            return list(pattern.values())
        raise self.error("rank_pattern", f"must map layers to whole numbers of 1 or more, not {pattern!r}")

    def alpha(self) -> float:
        value = self.required("lora_alpha")
        if isinstance(value, (int, float)) and is_finite(value):
            return value
        raise self.error("lora_alpha", f"must be a finite number, not {value!r}")

    def rank_stabilised(self) -> bool:
        value = self.values.get("use_rslora", False)
        if isinstance(value, bool):
            return value
        raise self.error("use_rslora", f"must be true or false, not {value!r}")

    def trained_on(self) -> str | None:
        value = self.required("base_model_name_or_path")
        if value is None or isinstance(value, str):
            return value
        raise self.error("base_model_name_or_path", f"must be text or null, not {value!r}")


class AdapterRegistry:
    """The directory of the LoRA adapters that are loaded into a :class:`ModelRegistry`.

    It keeps nothing itself: an adapter stands beside its endpoint in *models* and goes when that is unregistered or
    replaced by something else, whoever does it.
    Any number of these over the same *models* agree, and all may be shared between threads.
    Each method takes the registry's lock for a moment.

    >>> models = ModelRegistry()
    >>> models.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> AdapterRegistry(models).load(LoraAdapter("code", "bonsai-8b", "adapters/code"))
    ModelEndpoint('bonsai-8b:code', 'qwen3-8b', adapter='code')
    """

    __slots__ = ("models",)

    def __init__(self, models: ModelRegistry) -> None:
        if not isinstance(models, ModelRegistry):
            raise TypeError(f"models must be a ModelRegistry, not {models!r}")
        self.models: ModelRegistry = models

    def load(self, adapter: LoraAdapter, *, check_base: bool = True) -> ModelEndpoint:
        """Publish the endpoint ``base:name`` of an adapter that the engine has loaded, and return it.

        It is ready, and has its base's weights name and, unless the adapter has a shorter one, context length.
        Raises :class:`ModelNotFoundError` when the base is not registered, :class:`AdapterLoadedError` when the id is
        taken, and :class:`AdapterBaseError` when the base is itself an adapter's endpoint, when its context is shorter
        than the adapter's, or when the adapter was trained on other weights.
        *check_base* false leaves the last check out.
        """
        _check_adapter(adapter)
        with self._locked() as models:
            endpoint = self._endpoint(adapter, check_base)
            if models._generation(adapter.id.value) is not None:
                raise AdapterLoadedError(adapter.id.value)
            models._publish(endpoint, attached=adapter)
        return endpoint

    def swap(
        self, adapter: LoraAdapter, *, expect: int | None = None, check_base: bool = True
    ) -> "futures.Future[ModelEndpoint | None]":
        """Do what :meth:`load` does, also in place of what is there, and return the future of the endpoint replaced.

        The future is that of :meth:`ModelRegistry.swap`.
        With *expect*, a generation, nothing happens but :class:`StaleGenerationError` unless it is the present one.
        """
        _check_adapter(adapter)
        future: futures.Future[ModelEndpoint | None] = futures.Future()
        with self._locked() as models:
            endpoint = self._endpoint(adapter, check_base)
            if expect is not None:
                self._expect(adapter.id, expect)
            models._publish(endpoint, future, attached=adapter)
        return future

    def unload(self, id: ModelId | str) -> "futures.Future[ModelEndpoint | None]":
        """Remove the adapter of that id, and return the future of its endpoint, as :meth:`ModelRegistry.retire` does.

        The future completes with ``None``, and nothing is removed, if no adapter has that id.
        """
        key = check_name("id", id)
        future: futures.Future[ModelEndpoint | None] = futures.Future()
        with self._locked() as models:
            if key in _adapters(models):
                models._remove(key, future)
            else:
                future.set_result(None)
        return future

    @contextmanager
    def loading(self, adapter: LoraAdapter, *, check_base: bool = True) -> Iterator[ModelEndpoint]:
        """Publish an adapter as loading, and as ready when the ``with`` block has loaded it; as error when it raises.

        If a ready endpoint has the id, that one serves until the block has succeeded, and goes on if it raises.
        The block gets the endpoint as it is while loading.
        Raises what :meth:`load` raises but :class:`AdapterLoadedError`, and :class:`StaleGenerationError` after the
        block when somebody else has replaced or removed the endpoint meanwhile.
        An exception of the block goes through.
        """
        _check_adapter(adapter)
        id = adapter.id
        with self._locked() as models:
            endpoint = self._endpoint(adapter, check_base)
            loading = with_status(endpoint, EndpointStatus.LOADING)
            present = models._directory.at(id.value)
            serving = present is not None and present.status is READY
            known = models._generation(id.value) if serving else models._publish(loading, attached=adapter)
        try:
            yield loading
        except BaseException:
            with self._locked() as models:
                if not serving and models._generation(id.value) == known:
                    models._set_status(id.value, EndpointStatus.ERROR)
            raise
        with self._locked() as models:
            self._expect(id, known)
            if serving:
                models._publish(self._endpoint(adapter, check_base), attached=adapter)
            else:
                models._set_status(id.value, EndpointStatus.READY)

    def get(self, id: ModelId | str) -> LoraAdapter | None:
        """Return the adapter whose endpoint has that id; ``None`` if there is none."""
        key = check_name("id", id)
        with self._locked() as models:
            return _adapters(models).get(key)

    def of(self, base: ModelId | str) -> list[LoraAdapter]:
        """Return the adapters on the base endpoint of that id."""
        key = check_name("base", base)
        return [adapter for adapter in self if adapter.base_model == key]

    def __iter__(self) -> Iterator[LoraAdapter]:
        with self._locked() as models:
            adapters = list(_adapters(models).values())
        return iter(adapters)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<AdapterRegistry adapters={len(self)} models={self.models!r}>"

    def lease_stack(self, base: ModelId | str, stack: AdapterStack) -> "StackLease":
        """Lease the base of that id or alias, and the adapters of *stack* on it, all or none.

        A name in the stack is an adapter's name or its id.
        An empty stack leases the base alone.
        Raises :class:`ModelNotFoundError` and :class:`ModelNotReadyError` as routing does, and
        :class:`AdapterBaseError` when *base* is itself an adapter's endpoint or a member is on another base.
        Then nothing is leased.
        """
        requested = check_name("base", base)
        if not isinstance(stack, AdapterStack):
            raise TypeError(f"stack must be an AdapterStack, not {stack!r}")
        refs = list(stack.adapters)
        with self._locked() as models:
            endpoint = models.resolve(requested)
            if endpoint is None:
                raise ModelNotFoundError(requested)
            if endpoint.adapter is not None:
                raise AdapterBaseError(endpoint.id.value, requested, "it is an adapter's endpoint, not a base")
            # Nothing is leased before everything is known to be there and ready.
            ready(endpoint)
            adapters = [self._member(endpoint.id.value, ref.name) for ref in refs]
            slots = [models._directory.slots[str(id)] for id in (endpoint.id, *(each.id for each in adapters))]
            leases = [
                Lease(slot.endpoint, slot.id, slot.generation, models._ledger)
                for slot in slots
                if slot.endpoint is not None
            ]
        members = tuple(
            StackMember(adapter, ref.weight, lease.generation)
            for adapter, ref, lease in zip(adapters, refs, leases[1:], strict=True)
        )
        return StackLease(leases, members, self.models._ledger)

    @contextmanager
    def _locked(self) -> Iterator[ModelRegistry]:
        """Hold the registry's lock: what is found in the block stays so until its end."""
        ledger = self.models._ledger
        try:
            with ledger.lock:
                yield self.models
        finally:
            ledger.settle()

    def _endpoint(self, adapter: LoraAdapter, check_base: bool) -> ModelEndpoint:
        """Return the endpoint of *adapter* on its base, or say why it cannot be on it."""
        base = self.models._directory.at(adapter.base_model)
        if base is None:
            raise ModelNotFoundError(adapter.base_model)
        limit = base.max_context_length if adapter.max_context_length is None else adapter.max_context_length
        if base.adapter is not None:
            rule = "that is an adapter's endpoint, not a base"
        elif limit > base.max_context_length:
            rule = f"its context of {limit} tokens is longer than the base's {base.max_context_length}"
        elif check_base and not _are_the_same_weights(adapter.trained_on, base.base_model):
            rule = f"it was trained on '{adapter.trained_on}', and the base serves '{base.base_model}'"
        else:
            return ModelEndpoint(
                adapter.id,
                base.base_model,
                description=adapter.description,
                adapter=adapter.name,
                max_context_length=limit,
            )
        raise AdapterBaseError(adapter.name, adapter.base_model, rule)

    def _member(self, base: str, name: str) -> LoraAdapter:
        """Return the ready adapter on *base* of that name or id."""
        adapters = _adapters(self.models)
        adapter = adapters.get(f"{base}:{name}") or adapters.get(name)
        if adapter is None:
            adapter = next((each for each in adapters.values() if each.name == name), None)
        if adapter is None:
            raise ModelNotFoundError(name if name.startswith(f"{base}:") else f"{base}:{name}")
        if adapter.base_model != base:
            raise AdapterBaseError(name, base, f"it is loaded on '{adapter.base_model}'")
        endpoint = self.models._directory.at(adapter.id.value)
        if endpoint is not None and endpoint.status is not READY:
            raise ModelNotReadyError(adapter.id.value, endpoint.status)
        return adapter

    def _expect(self, id: ModelId, generation: int | None) -> None:
        present = self.models._generation(id.value)
        if present != generation:
            raise StaleGenerationError(id.value, generation, present)


@dataclass(frozen=True, slots=True)
class StackMember:
    """One adapter of a :class:`StackLease`, its weight, and the generation that was leased."""

    adapter: LoraAdapter
    weight: float
    generation: int


class StackLease:
    """A base and the adapters of a stack, leased together by :meth:`AdapterRegistry.lease_stack`.

    ``endpoint`` is the base's, and ``members`` are the adapters in the stack's order.
    ``key`` is a hashable value that differs whenever the base, the order, a generation or a weight differs.
    A cache of blended weights should be keyed by it.
    It ends with :meth:`release` or with its ``with`` block, and as :class:`Lease` does when it is dropped.
    """

    __slots__ = ("_leases", "_ledger", "endpoint", "key", "members")

    def __init__(self, leases: list[Lease], members: tuple[StackMember, ...], ledger: Ledger) -> None:
        self._leases = leases
        self._ledger = ledger
        self.endpoint: ModelEndpoint = leases[0].endpoint
        self.members: tuple[StackMember, ...] = members
        self.key: tuple[str, int, tuple[tuple[str, int, float], ...]] = (
            self.endpoint.id.value,
            leases[0].generation,
            tuple((member.adapter.id.value, member.generation, member.weight) for member in members),
        )

    def release(self) -> None:
        """End the use of the base and of all adapters. Releasing again does nothing. Never waits."""
        self._ledger.returned.extend(self._leases)
        self._ledger.settle()

    def __enter__(self) -> "StackLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<StackLease of '{self.endpoint.id}' members={len(self.members)}>"


def _adapters(models: ModelRegistry) -> dict[str, LoraAdapter]:
    """Return the adapters of a registry by id, in the order of loading; nothing else is ever attached to endpoints."""
    return models._directory.attached  # type: ignore[return-value]


def _check_adapter(adapter: LoraAdapter) -> None:
    if not isinstance(adapter, LoraAdapter):
        raise TypeError(f"adapter must be a LoraAdapter, not {adapter!r}")


def _are_the_same_weights(trained_on: str | None, base_model: str) -> bool:
    """Compare names of weights: by full text, or by the last segment of their paths regardless of case."""
    return trained_on in (None, base_model) or _last_segment(str(trained_on)) == _last_segment(base_model)


def _last_segment(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].casefold()

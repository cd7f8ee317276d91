"""Loading models when they are requested, within a capacity, and unloading those that nobody uses.

Theory of operation
-------------------

A *copy* is the weights of one publication, from the moment when somebody wants them until they are unloaded.
It waits in ``_queue`` until there is room. Then it moves to ``_copies``, where it loads, is loaded, and unloads.
Evicting a copy publishes its endpoint anew, as ``loading``.
The old publication drains, its copy is unloaded when the last lease has ended, and its room is free after that.
A copy leaves when its publication is no longer in the registry. Eviction, reload and removal are the same case.

``_plan`` looks at everything and does all that has become possible.
It stores no progress of its own, so the next plan completes one that an exception has cut short.
A plan is due after each write to the registry, when a draining publication is idle, when the last lease of a copy ends
while others wait or before its load has begun, and when a future of ``load`` or ``unload`` is done.
Plans, calls of users' functions and the completion of futures are notices of the registry's ledger: they are told
without the lock, in the thread that finishes a verb or a release.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from math import fsum, inf
from typing import Any
from weakref import ref

from bonsai_routing._checks import check_seconds, check_tokens, is_finite
from bonsai_routing._copies import Call, Copy, Due, Hold
from bonsai_routing._directory import LARGEST
from bonsai_routing._ledger import Completion, Ledger, Publication, new_future
from bonsai_routing._record import Note, Record, reason_of
from bonsai_routing._routing import find_record
from bonsai_routing._store import Store
from bonsai_routing._targets import in_order
from bonsai_routing.endpoint import EndpointStatus, ModelEndpoint
from bonsai_routing.errors import ContextTooLongError, ModelNotFoundError, ModelNotReadyError, RoutingError
from bonsai_routing.leases import Lease
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId
from bonsai_routing.router import ModelRouter

__all__ = ["LoadingLease", "ModelLoader"]

LOADING, READY, ERROR = EndpointStatus.LOADING, EndpointStatus.READY, EndpointStatus.ERROR

Load = Callable[[ModelEndpoint, LoraAdapter | None], Future[Any]]
Unload = Callable[[Publication], Future[Any]]

_logger = logging.getLogger("bonsai_routing")


class ModelLoader:
    """Loads models when they are requested, within a capacity, and evicts the least recently used ones.

    The loader manages the models of *router*'s registry that are ``loading``, and those that it has loaded.
    It leaves a model alone that was registered as ``ready``, which *pins* it, or that *manages* declines.
    The registry shows a model that is not loaded as ``loading``.

    *load(endpoint, adapter)* loads a model and returns a future of the engine's object, which becomes the ``handle`` of
    the publication; *adapter* is ``None`` for a base model.
    *unload(publication)* frees what *load* has loaded for that publication, and returns a future that is done when it
    is freed. Its result does not matter; if it fails, that is logged and the room counts as free.
    Both must return a ``concurrent.futures.Future``, as ``submit`` of an executor and
    ``asyncio.run_coroutine_threadsafe`` do, and return at once: they are called without any lock, in the thread that
    leases, releases, changes the registry, or completes one of these futures.
    The loader starts no threads and has no timers.

    *capacity* bounds the costs of all models that are loaded, being loaded or not yet unloaded, taken together.
    *cost(endpoint)* is a number of 0 or more in the same unit, for example bytes; ``None`` stands for a cost of 1 each.
    *manages(endpoint)* returns whether the loader may load a model; ``None`` stands for all.
    The loader asks both when an endpoint is first requested, and remembers the answers while its declaration stays.
    A load that failed is tried again by the first request after *retry_after* seconds.

    Safe to share between threads, and for use in asyncio: no method waits.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b", status="loading"))
    >>> pool = ThreadPoolExecutor()
    >>> loader = ModelLoader(
    ...     ModelRouter(registry),
    ...     load=lambda endpoint, adapter: pool.submit(str.upper, endpoint.base_model),
    ...     unload=lambda publication: pool.submit(print, "unloading", publication.endpoint.id),
    ...     capacity=2,
    ... )
    >>> with loader.lease("bonsai-8b") as lease:
    ...     lease.loaded.result(timeout=60)
    ...     lease.handle
    'QWEN3-8B'
    >>> loader.close().result(timeout=60)
    unloading bonsai-8b
    """

    __slots__ = (
        "__weakref__",
        "_capacity",
        "_closing",
        "_copies",
        "_cost",
        "_due",
        "_failed",
        "_load",
        "_manages",
        "_queue",
        "_retry_after",
        "_store",
        "_terms",
        "_unload",
        "router",
    )

    def __init__(
        self,
        router: ModelRouter,
        load: Load,
        unload: Unload,
        *,
        capacity: float,
        cost: Callable[[ModelEndpoint], float] | None = None,
        manages: Callable[[ModelEndpoint], object] | None = None,
        retry_after: float = 30.0,
    ) -> None:
        if not isinstance(router, ModelRouter):
            raise TypeError(f"router must be a ModelRouter, not {router!r}")
        for argument, function in (("load", load), ("unload", unload), ("cost", cost), ("manages", manages)):
            if not (callable(function) or (function is None and argument in ("cost", "manages"))):
                raise TypeError(f"{argument} must be callable, not {function!r}")
        if not isinstance(capacity, (int, float)) or isinstance(capacity, bool):
            raise TypeError(f"capacity must be a number, not {capacity!r}")
        # False for NaN too.
        if not capacity > 0:
            raise ValueError(f"capacity must be more than 0, not {capacity!r}")
        check_seconds("retry_after", retry_after)
        self.router: ModelRouter = router
        self._store: Store = router.registry._store
        self._load: Load = load
        self._unload: Unload = unload
        self._capacity: float = capacity
        self._cost: Callable[[ModelEndpoint], float] | None = cost
        self._manages: Callable[[ModelEndpoint], object] | None = manages
        self._retry_after: float = retry_after
        # What users' functions have said, by id: the declared endpoint and its cost, None if it is not managed.
        self._terms: dict[str, tuple[ModelEndpoint, float | None]] = {}
        # All of these belong to the store's lock.
        # What takes room, and what waits for it in the order of the first requests, by generation.
        self._copies: dict[int, Copy] = {}
        self._queue: dict[int, Copy] = {}
        # By id, the generation whose load has failed, and when, by the monotonic clock.
        self._failed: dict[str, tuple[int, float]] = {}
        # The future of close(), once that was called.
        self._closing: Future[None] | None = None
        # The latest plan that was made due.
        self._due: Due | None = None
        self._store.run(self._watch)

    def lease(
        self, requested_model: ModelId | str | None = None, required_context: int | None = None
    ) -> "LoadingLease":
        """Do what :meth:`ModelRouter.lease` does, and load the model if necessary. Never waits.

        The lease counts at once, also while its model is not loaded: wait for its ``loaded`` before using its handle.
        If no model was requested and the tokens do not fit into the default's context, a ready model that they fit into
        is preferred to one that would have to be loaded.
        Raises what :meth:`ModelRouter.lease` raises. :class:`ModelNotReadyError` then means that the loader does not
        manage the model, or that loading it failed less than *retry_after* seconds ago.
        Raises what *cost* and *manages* raise, and ``TypeError`` or ``ValueError`` when the cost is not a finite number
        of 0 or more. If it raises, nothing is leased.
        """
        if required_context is not None:
            check_tokens("required_context", required_context)
        while True:
            try:
                return self._store.run(self._lease, requested_model, required_context)
            except _Unknown as unknown:
                self._ask(unknown.record)

    def unload_idle(self, seconds: float) -> int:
        """Evict each loaded model that nobody has used for that many seconds; return how many that are.

        A model was last used when a lease of it began or ended. A base is in use while an adapter on it is.
        Call this from time to time to have a keep-alive; 0 evicts everything that is idle.
        """
        check_seconds("seconds", seconds)
        return self._store.run(self._unload_idle, seconds)

    def loaded(self) -> list[ModelEndpoint]:
        """Return the endpoints that the loader has loaded, the least recently used first and those in use last.

        An evicted one is not among them, though it is in memory until its last lease has ended and it is unloaded.
        """
        return self._store.run(self._loaded)

    def close(self) -> Future[None]:
        """Load nothing more, unload everything as soon as it is idle, and return a future that is done then.

        Requests that wait for a load which has not begun fail with :class:`ModelNotReadyError`; a load that has begun
        still serves those that wait for it. From now on :meth:`lease` does only what :meth:`ModelRouter.lease` does.
        The future cannot be cancelled. Closing again returns the same future.
        """
        return self._store.run(self._close)

    def __repr__(self) -> str:
        return f"<ModelLoader copies={len(self._copies)} waiting={len(self._queue)} capacity={self._capacity}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a ModelLoader cannot be copied or pickled: what it has loaded is there once")

    # What calls users' functions, without the lock

    def _ask(self, record: Record) -> None:
        """Ask whether the loader manages an endpoint, and for its cost."""
        endpoint = record.endpoint
        cost: float | None = None
        if self._manages is None or self._manages(endpoint):
            cost = 1 if self._cost is None else self._cost(endpoint)
            if not isinstance(cost, (int, float)) or isinstance(cost, bool):
                raise TypeError(f"cost must return a number, not {cost!r}, for '{record.id}'")
            if not (is_finite(cost) and cost >= 0):
                raise ValueError(f"cost must return a finite number of 0 or more, not {cost!r}, for '{record.id}'")
        directory = self._store.directory
        if len(self._terms) > 2 * directory.count() + 16:
            self._terms = {id: terms for id, terms in self._terms.copy().items() if directory.find_id(id) is not None}
        self._terms[record.id] = record.declared, cost

    def _advance(self) -> None:
        while True:
            try:
                self._store.run(self._plan)
                return
            except _Unknown as unknown:
                try:
                    self._ask(unknown.record)
                except Exception as error:
                    self._store.run(self._fail, unknown.record, error)

    # All that follows needs the store's lock.

    # Leasing

    def _lease(self, requested_model: ModelId | str | None, required_context: int | None) -> "LoadingLease":
        record = self._find(requested_model, required_context)
        copy, base, ledger = self._copies.get(record.generation), None, self._store.ledger
        # Afterwards another target of the name may answer, whose copy is in the same state.
        while copy is not None and copy.is_loaded and self._needs_another_base(copy):
            self._store.renew(record)
            record = self._find(requested_model, required_context)
            copy = self._copies.get(record.generation)
        if not record.is_ready or record.adapter is not None:
            record, copy, base = self._prepare(record)
        if copy is None or (record.is_ready and copy.is_loaded):
            lease = LoadingLease(record, requested_model, ledger, base, _LOADED, self._on_release)
        else:
            name = None if requested_model is None else str(requested_model)
            if name not in copy.loaded or copy.loaded[name].done():
                self._wake()
                copy.loaded[name] = new_future()
            lease = LoadingLease(record, requested_model, ledger, base, copy.loaded[name], self._on_release)
            copy.waiting[id(lease)] = ref(lease)
        if copy is not None:
            copy.used_at = time.monotonic()
        return lease

    def _prepare(self, record: Record) -> tuple[Record, Copy | None, Lease | None]:
        """Return the record as it is now, its copy, and for a pinned adapter a lease of its base, whose copy it is."""
        base = self._base(record)
        if not record.is_ready:
            for each in (base, record):
                if each is not None and each.own_status().status is ERROR:
                    self._store.set_status(each.id, LOADING)
            record = self._store.directory.tables.records[record.id]
            base = self._base(record)
        if base is not None and record.own_status().status is READY and record.generation not in self._copies:
            # A pinned adapter: what must be loaded, and stay, is its base.
            copy = self._copies.get(base.generation) if base.is_ready else self._want(base)
            return record, copy, None if copy is None else Lease(base, None, self._store.ledger)
        return record, self._copies.get(record.generation) if record.is_ready else self._want(record), None

    def _find(self, name: ModelId | str | None, required_context: int | None) -> Record:
        """Return the record that answers, loaded or not, or raise the error that explains why there is none."""
        try:
            return find_record(self._store.directory, name, required_context)
        except (ContextTooLongError, ModelNotReadyError):
            # A variable that keeps the error would keep this frame too, and the frame the error.
            record = self._find_loadable(None if name is None else str(name), required_context)
            if record is None:
                raise
            return record

    def _find_loadable(self, name: str | None, required_context: int | None) -> Record | None:
        """Return the record to load for a name of which no target answers as it is; ``None`` if none may be loaded.

        Raise an error that is more to the point than the router's if there is one.
        """
        target, records, _ = self._store.directory.find_targets(name)
        usable: list[Record] = []
        for id in in_order(target, name, None):
            record = records.get(id)
            if record is not None and (record.is_ready or self._can_load(record)):
                fits = required_context is None or required_context <= record.endpoint.max_context_length
                if fits and not record.is_ready:
                    return record
                usable.append(record)
        if required_context is None or not usable:
            first = next(iter(records.values()))
            if first.own is not None and first.own.status is ERROR:
                # More to the point than the status of the base.
                raise ModelNotReadyError(first.id, ERROR, *(first.own.note or Note(None, None)), name) from None
            return None
        fallback = self._find_fallback(required_context) if name is None else None
        if fallback is None:
            largest = max(usable, key=lambda record: record.endpoint.max_context_length)
            raise ContextTooLongError(largest.id, required_context, largest.endpoint.max_context_length) from None
        return fallback

    def _find_fallback(self, required_context: int) -> Record | None:
        """Return the record that answers if nothing was requested and the tokens do not fit into the default."""
        directory = self._store.directory
        largest = directory.find_indexed(LARGEST)
        if largest is not None and required_context <= largest.endpoint.max_context_length:
            return largest
        fitting = [each for each in directory.all_records() if required_context <= each.endpoint.max_context_length]
        fitting.sort(key=lambda each: -each.endpoint.max_context_length)
        return next((record for record in fitting if self._can_load(record)), None)

    def _can_load(self, record: Record) -> bool:
        """Return whether the loader may load a model that is not ready, and its base if that is not ready either."""
        base = self._base(record)
        if self._closing is not None or not (base is None or base.is_ready or self._can_load(base)):
            return False
        status = record.own_status().status
        if status is READY:
            # The model is an adapter that is ready as soon as its base is.
            return True
        if status is ERROR:
            generation, since = self._failed.get(record.id, (None, 0.0))
            if generation != record.generation or time.monotonic() - since < self._retry_after:
                return False
        elif status is not LOADING:
            return False
        return self._cost_of(record) is not None

    def _want(self, record: Record) -> Copy:
        """Return the copy of a publication that is not ready. Queue it, unless it is there already."""
        copy = self._copies.get(record.generation) or self._queue.get(record.generation)
        if copy is None:
            cost = self._cost_of(record)
            assert cost is not None
            # The plan begins when the lock is free, so nothing is lost if an exception comes in between.
            self._wake()
            copy = self._queue[record.generation] = Copy(record, cost)
        return copy

    # Planning

    def _plan(self) -> None:
        """Do everything that has become possible. Raise :class:`_Unknown` if the user's functions must be asked."""
        for copy in [*self._copies.values()]:
            self._step(copy)
        for copy in [*self._queue.values()]:
            record = self._record(copy)
            if record is None or not self._is_awaited(copy, record):
                self._answer(copy, record)
                self._queue.pop(copy.generation, None)
        self._start()
        if self._closing is not None and not self._copies:
            ledger = self._store.ledger
            ledger.watchers = tuple(each for each in ledger.watchers if each != self._on_change)
            notice = Completion(self._closing, None)
            ledger.tell(notice, notice)

    def _is_awaited(self, copy: Copy, record: Record) -> bool:
        """Return whether a copy that is not loaded is still to be. If nobody waits for it any more, say so."""
        if record.endpoint.status is not LOADING or self._closing is not None:
            return False
        if not self._store.ledger.in_flight(copy.generation):
            self._tell(copy, record.not_ready(None))
            return False
        return True

    def _step(self, copy: Copy) -> None:
        """Take a copy that has its room as far as it can go: load it, publish it, unload it, free its room."""
        if copy.load is None:
            self._begin(copy)
        elif not copy.is_loaded and copy.load.is_done():
            self._end_load(copy, copy.load)
        record = self._record(copy)
        if copy.is_loaded and record is not None:
            if self._has_lost_its_base(copy):
                self._store.renew(record)
                record = None
            elif record.own_status().status is LOADING:
                self._store.set_status(copy.id, READY, None, copy.handle)
                record = self._record(copy)
        self._answer(copy, record)
        if copy.is_loaded and record is not None and self._closing is not None:
            self._store.renew(record)
            record = None
        if (
            copy.is_loaded
            and copy.unload is None
            and record is None
            and not self._store.ledger.in_flight(copy.generation)
        ):
            was = copy.record
            publication = Publication(was.endpoint, was.adapter, was.generation, copy.handle)
            copy.unload = Call(self._unload, (publication,), self._on_done)
        for call in (copy.load, copy.unload):
            if call is not None and not call.is_told():
                self._store.ledger.tell(call, call)
        if copy.unload is not None and copy.unload.is_done():
            error = copy.unload.error()
            if error is not None:
                _logger.error("unloading %s failed", copy.record.endpoint, exc_info=error)
            self._forget(copy)

    def _begin(self, copy: Copy) -> None:
        """Load a copy, unless it is an adapter's whose base is still loading or has gone."""
        record = self._record(copy)
        base = None if record is None else self._base(record)
        if record is None or not self._is_awaited(copy, record):
            self._forget(copy)
        elif self._has_lost_its_base(copy):
            self._forget(copy)
            self._queue = {copy.generation: copy, **self._queue}
        elif base is None or base.is_ready:
            self._failed.pop(copy.id, None)
            copy.load = Call(self._load, (record.endpoint, record.adapter), self._on_done)

    def _end_load(self, copy: Copy, load: Call) -> None:
        """Keep what was loaded, or say why it was not."""
        record, error = self._record(copy), load.error()
        if error is None:
            copy.handle = load.result()
            if record is not None and record.own_status().status is not LOADING:
                # The server has set a status meanwhile, which stays.
                self._store.set_status(copy.id, *record.own_status(), copy.handle)
            copy.is_loaded = True
        else:
            if record is not None:
                self._fail(record, error)
            self._forget(copy)

    def _start(self) -> None:
        """Give those who wait their room, first come first served, and evict what is in their way."""
        present = {copy.id for copy in self._copies.values()}
        wanted: list[Copy] = []
        kept: list[Copy] = []
        victims: list[tuple[bool, float, Copy]] = []
        adapters_on: dict[int, list[Copy]] = {}
        staying: dict[bool, list[Copy]] = {}
        for copy in [*self._queue.values()]:
            needed = self._needed(copy, present)
            if needed is None:
                continue
            needs = self._base(copy.record)
            base = None if needs is None else self._copies.get(needs.generation)
            kept += [] if base is None else [base]
            least = needed if base is None else [*needed, base]
            if not self._fit(least):
                also = "".join(f" and its base's of {each.cost}" for each in least if each is not copy)
                verb = "are" if also else "is"
                reason = f"its cost of {copy.cost}{also} {verb} more than the capacity of {self._capacity}"
                self._fail(copy.record, ValueError(reason))
                self._queue.pop(copy.generation, None)
            elif not wanted and self._fit([*self._copies.values(), *needed]):
                for each in needed:
                    present.add(each.id)
                    self._give_room(each)
            else:
                # All who come later wait behind this one, and keep the bases that it and those before it need.
                is_first, wanted = not wanted, wanted + needed
                if is_first:
                    adapters_on = self._adapters_on()
                    victims = self._by_last_use(adapters_on)
                    staying = {in_use: self._staying(adapters_on, in_use) for in_use in (False, True)}
                for use in [*victims]:
                    in_use, _, victim = use
                    if self._fit(staying[in_use] + wanted) or (in_use and not is_first):
                        break
                    if victim not in kept and self._evict(victim, adapters_on):
                        victims.remove(use)
                        staying[True].remove(victim)
                        if not in_use:
                            staying[False].remove(victim)
                if not self._fit(staying[True] + wanted):
                    break

    def _fit(self, copies: list[Copy]) -> bool:
        """Return whether copies fit into the capacity together."""
        return _cost(copies) <= self._capacity

    def _staying(self, adapters_on: dict[int, list[Copy]], in_use_too: bool) -> list[Copy]:
        """Return the copies whose room is not becoming free.

        What leaves while it is in use or still loading may take long. It counts as staying unless *in_use_too* is true.
        """
        return [
            copy
            for copy in self._copies.values()
            if self._record(copy) is not None
            or not (in_use_too or (copy.is_loaded and not self._is_in_use(copy, adapters_on.get(copy.generation, []))))
        ]

    def _is_in_use(self, copy: Copy, adapters: list[Copy]) -> bool:
        """Return whether somebody has a lease of a copy, or of one of the *adapters* on it."""
        in_flight = self._store.ledger.in_flight
        # Each adapter in memory has a lease of its base.
        return in_flight(copy.generation) > len(adapters) or any(in_flight(each.generation) for each in adapters)

    def _needed(self, copy: Copy, present: set[str]) -> list[Copy] | None:
        """Return what must be loaded for a copy that waits; ``None`` if it waits for something other than room.

        *present* are the ids that have a copy in memory.
        """
        # Somebody else is loading it, or an older copy has to leave first.
        if self._store.is_loading(copy.id) or copy.id in present:
            return None
        base = self._base(copy.record)
        if base is None or base.is_ready or base.generation in self._copies:
            return [copy]
        cost = self._cost_of(base)
        if cost is None or base.id in present:
            return None
        # The adapter first, because it is what waits for the base.
        return [copy, self._queue.get(base.generation) or Copy(base, cost)]

    def _give_room(self, copy: Copy) -> None:
        base = self._base(copy.record)
        if base is not None and copy.base is None:
            # An adapter that is in memory keeps its base there.
            copy.base = Hold(base, None, self._store.ledger)
        self._copies[copy.generation] = copy
        self._queue.pop(copy.generation, None)
        self._step(copy)

    def _by_last_use(self, adapters_on: dict[int, list[Copy]]) -> list[tuple[bool, float, Copy]]:
        """Return the loaded copies, each with whether it is in use and when it last was: idle ones first, oldest first.

        What is on a base counts as a use of the base, but adapters that nobody uses do not make it busy.
        """
        found = []
        for copy in self._copies.values():
            if copy.is_loaded and self._record(copy) is not None:
                adapters = adapters_on.get(copy.generation, [])
                used_at = max(each.used_at for each in (copy, *adapters))
                found.append((self._is_in_use(copy, adapters), used_at, len(adapters), copy))
        return [(busy, used_at, copy) for busy, used_at, _, copy in sorted(found, key=lambda each: each[:3])]

    def _adapters_on(self) -> dict[int, list[Copy]]:
        """Return the copies of adapters by the generation of the base that they need."""
        adapters_on: dict[int, list[Copy]] = {}
        for copy in self._copies.values():
            if copy.base is not None:
                adapters_on.setdefault(copy.base.generation, []).append(copy)
        return adapters_on

    def _evict(self, copy: Copy, adapters_on: dict[int, list[Copy]]) -> bool:
        """Publish a loaded copy's endpoint anew, without its handle; return whether that was possible.

        It is not if the copy has left already, if something else is being loaded in its place, or while an adapter
        needs it. Adapters stand before their base in the order of use, so they have been evicted before it.
        """
        record = self._record(copy)
        adapters = adapters_on.get(copy.generation, [])
        if (
            record is None
            or self._store.is_loading(copy.id)
            or any(self._record(each) is not None for each in adapters)
        ):
            return False
        self._store.renew(record)
        return True

    def _unload_idle(self, seconds: float) -> int:
        now, adapters_on = time.monotonic(), self._adapters_on()
        bases = {copy.record.adapter.base_model for copy in self._queue.values() if copy.record.adapter is not None}
        return sum(
            self._evict(copy, adapters_on)
            for in_use, used_at, copy in self._by_last_use(adapters_on)
            # What an adapter waits for is in use.
            if not in_use and now - used_at >= seconds and copy.id not in bases
        )

    def _loaded(self) -> list[ModelEndpoint]:
        return [copy.record.endpoint for _, _, copy in self._by_last_use(self._adapters_on())]

    def _close(self) -> Future[None]:
        self._wake()
        if self._closing is None:
            self._closing = new_future()
        return self._closing

    # Telling

    def _answer(self, copy: Copy, record: Record | None) -> None:
        """Tell those who wait for a copy, if it is loaded or will not be."""
        if copy.is_answered():
            return
        if record is None:
            self._tell(copy, self._gone(copy))
        elif not record.is_ready:
            base = self._base(record)
            if record.endpoint.status is not LOADING:
                self._tell(copy, record.not_ready(None))
            elif copy.is_loaded and base is not None and not base.is_ready and self._can_load(base):
                # The server has called a pinned base loading while an adapter was loaded onto it.
                self._want(base)
            elif self._closing is not None and copy.load is None:
                self._tell(copy, ModelNotReadyError(record.id, LOADING, "the loader is closed"))
        elif copy.load is None or copy.is_loaded:
            for waiting in copy.waiting.copy().values():
                lease = waiting()
                if lease is not None:
                    present = self._store.directory.find_publication(lease.endpoint.id.value, lease.generation)
                    if present is not None:
                        lease.endpoint, lease.handle = present.endpoint, present.handle
            self._tell(copy, None)

    def _tell(self, copy: Copy, error: ModelNotFoundError | ModelNotReadyError | None) -> None:
        for name, future in copy.loaded.copy().items():
            if not future.done():
                notice = Completion(future, None, None if error is None else self._as_requested(error, name))
                self._store.ledger.tell(notice, notice)
        copy.waiting = {}

    def _as_requested(self, error: ModelNotFoundError | ModelNotReadyError, name: str | None) -> RoutingError:
        """Return the error for those who requested that name."""
        if isinstance(error, ModelNotReadyError):
            named = ModelNotReadyError(error.model, error.status, error.reason, error.retry_after, name)
        elif self._store.directory.find(name) is None:
            return error if name is None else ModelNotFoundError(name)
        else:
            # The name has other targets, so it is worth trying again.
            named = ModelNotReadyError(error.model, LOADING, "it was removed before it was loaded", None, name)
        named.__cause__ = error.__cause__
        return named

    def _fail(self, record: Record, error: BaseException) -> None:
        """Give a model the status ``error``, and tell those who wait for it, or for an adapter on it."""
        present = self._store.directory.find_publication(record.id, record.generation)
        if present is None:
            return
        status = present.own_status().status
        note = Note(reason_of(error), self._retry_after)
        # A status that the server has set meanwhile stays.
        was_set_here = status is ERROR and self._failed.get(record.id, (None,))[0] == record.generation
        if status is LOADING or was_set_here:
            generation = self.router.registry.generation
            self._failed = {id: each for id, each in self._failed.items() if generation(id) == each[0]}
            self._failed[record.id] = record.generation, time.monotonic()
            self._store.set_status(record.id, ERROR, note)
        for copy in (*self._queue.values(), *self._copies.values()):
            adapter = copy.record.adapter
            is_meant = copy.id == record.id or (adapter is not None and adapter.base_model == record.id)
            if is_meant and not copy.is_answered() and self._record(copy) is not None:
                failure = ModelNotReadyError(copy.id, ERROR, *note)
                failure.__cause__ = error
                self._tell(copy, failure)

    def _gone(self, copy: Copy) -> ModelNotFoundError | ModelNotReadyError:
        if self._store.directory.find_id(copy.id) is None:
            return ModelNotFoundError(copy.id)
        return ModelNotReadyError(copy.id, LOADING, "it was replaced before it was loaded")

    # Asking the registry

    def _record(self, copy: Copy) -> Record | None:
        """Return the record of a copy; ``None`` if its publication is no longer in the registry."""
        record = self._store.directory.find_publication(copy.id, copy.generation)
        if record is not None:
            copy.record = record
        return record

    def _base(self, record: Record) -> Record | None:
        """Return the base of an adapter's record; ``None`` for any other."""
        return None if record.adapter is None else self._store.directory.find_id(record.adapter.base_model)

    def _has_lost_its_base(self, copy: Copy) -> bool:
        """Return whether a copy is an adapter's whose base was published anew since it got its room."""
        base = self._base(copy.record)
        return copy.base is not None and (base is None or base.generation != copy.base.generation)

    def _needs_another_base(self, copy: Copy) -> bool:
        """Return whether a loaded copy is an adapter's that cannot be used before its base is loaded anew."""
        base = self._base(copy.record)
        is_missing = base is not None and not base.is_ready and base.generation not in self._copies
        return is_missing or self._has_lost_its_base(copy)

    def _cost_of(self, record: Record) -> float | None:
        """Return the cost of a model; ``None`` if the loader does not manage it."""
        terms = self._terms.get(record.id)
        if terms is None or terms[0] != record.declared:
            raise _Unknown(record)
        return terms[1]

    def _forget(self, copy: Copy) -> None:
        """Free the room of a copy."""
        self._answer(copy, self._record(copy))
        if copy.base is not None:
            base = self._copies.get(copy.base.generation)
            if base is not None:
                base.used_at = max(base.used_at, copy.used_at)
            copy.base.release()
            copy.base = None
        self._copies.pop(copy.generation, None)
        self._wake()

    # What makes a plan due. Needs no lock

    def _watch(self) -> None:
        ledger = self._store.ledger
        ledger.watchers = (*ledger.watchers, self._on_change)

    def _on_change(self, generation: int | None) -> None:
        """Note that the registry was written to, or that a generation which drained is idle."""
        if self._queue or (self._copies if generation is None else generation in self._copies):
            self._wake()

    def _on_release(self, generation: int, lease: int) -> None:
        """Note that a lease of a generation has ended. It may have waited, or be the last one."""
        copy = self._copies.get(generation) or self._queue.get(generation)
        if copy is not None:
            copy.used_at = time.monotonic()
            copy.waiting.pop(lease, None)
            if (self._queue or copy.load is None) and not self._store.ledger.in_flight(generation):
                self._on_done()

    def _on_done(self, _: Future[Any] | None = None) -> None:
        """Note that a future of the user's is done, and plan at once."""
        self._wake()
        self._store.ledger.settle()

    def _wake(self) -> None:
        """Make a plan due, unless one is that has not begun."""
        ledger, due = self._store.ledger, self._due
        if due is None or due.has_begun or due not in ledger.due:
            due = Due(self._advance)
            ledger.tell(due, due)
            self._due = due


class LoadingLease(Lease):
    """A lease that :meth:`ModelLoader.lease` returns, of a model that may still have to be loaded.

    ``loaded`` is a future that completes with ``None`` when the model is loaded; ``handle`` is right from then on.
    It fails with :class:`ModelNotReadyError` when the model cannot be loaded, with the exception as its cause, when the
    model is replaced or its status is set before it is loaded, and with :class:`ModelNotFoundError` when it is removed
    and the requested name has no other target.
    It may be shared with other leases and cannot be cancelled, so waiting again after a timeout is fine.
    It holds nothing: whatever becomes of waiting, :meth:`release` ends the use.

    A released lease no longer waits. A model that nobody waits for is not loaded, unless the load has begun.
    """

    __slots__ = ("__weakref__", "_base", "_on_release", "loaded")

    def __init__(
        self,
        record: Record,
        requested: ModelId | str | None,
        ledger: Ledger,
        base: Lease | None,
        loaded: Future[None],
        on_release: Callable[[int, int], None],
    ) -> None:
        # The lease of the base that a pinned adapter is on.
        self._base = base
        self.loaded: Future[None] = loaded
        # Takes the generation of which a lease has ended, and the id() of this lease.
        self._on_release = on_release
        Lease.__init__(self, record, requested, ledger)

    def release(self) -> None:
        """End the use of the model, and any waiting for it. Releasing again does nothing. Never waits."""
        is_held = self._held is not None
        try:
            Lease.release(self)
        finally:
            if is_held:
                self._on_release(self.generation, id(self))
                if self._base is not None:
                    self._base.release()
                    self._on_release(self._base.generation, id(self))


class _Unknown(Exception):
    """The user's functions have not been asked about the endpoint of ``record``, and cannot be under the lock."""

    def __init__(self, record: Record) -> None:
        self.record = record


def _cost(copies: list[Copy]) -> float:
    # The sum is the same in any order.
    try:
        return fsum(copy.cost for copy in copies)
    except OverflowError:
        return inf


# The future of every lease whose model is loaded.
_LOADED: Future[None] = new_future()
_LOADED.set_result(None)

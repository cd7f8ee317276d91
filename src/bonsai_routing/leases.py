"""Leases of endpoints: as long as a request holds one, the publication that it runs on counts as in use."""

import warnings
from types import TracebackType
from typing import Any, Self

from bonsai_routing._ledger import DrainingEndpoint, Ledger, Publication
from bonsai_routing._record import Record
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.lora import LoraAdapter
from bonsai_routing.model_id import ModelId

__all__ = ["DrainingEndpoint", "Lease", "Publication"]


class Lease:
    """One use of an endpoint, from :meth:`ModelRouter.lease` until :meth:`release` or the end of its ``with`` block.

    All attributes are those of one publication, as it was when it was leased:

    ``endpoint`` is the endpoint.
    ``adapter`` is the :class:`LoraAdapter` that was published with it, ``None`` if there was none.
    ``handle`` is the engine's object that was published with it, ``None`` if there was none.
    ``generation`` is the number of the publication.
    No other publication in this registry has it, not even a later one of the same id; a change of status keeps it.
    So it is a good key for a cache of weights or prefixes.
    ``requested`` is the name that was requested, ``None`` for the default.

    A lease may be released in any thread.
    A lease that is dropped without being released is released when it is garbage-collected, with a ``ResourceWarning``.
    """

    __slots__ = ("_held", "_ledger", "adapter", "endpoint", "generation", "handle", "requested")

    def __init__(self, record: Record, requested: ModelId | str | None, ledger: Ledger) -> None:
        self.endpoint: ModelEndpoint = record.endpoint
        self.adapter: LoraAdapter | None = record.adapter
        self.handle: Any = record.handle
        self.generation: int = record.generation
        self.requested: ModelId | str | None = requested
        self._ledger = ledger
        # The leases of this generation; None after the release.
        self._held: dict[int, int] | None = ledger.held.setdefault(record.generation, {})
        # The lease counts from here on.
        self._held[id(self)] = ledger.owner

    def release(self) -> None:
        """End the use of the endpoint. Releasing again does nothing. Never waits."""
        held, ledger = self._held, self._ledger
        if held is not None:
            if ledger.drains:
                # If an exception cuts this call short, the next one sees to the generation.
                ledger.ending.add(self.generation)
            held.pop(id(self), None)
            if ledger.drains:
                ledger.end(self.generation)
            self._held = None
        if ledger.ending:
            ledger.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        try:
            held = self._held
        except AttributeError:
            # An exception ended __init__ before the lease was counted.
            return
        if held is not None:
            self.release()
            message = f"a lease of '{self.endpoint.id}' was dropped without being released"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = "released" if self._held is None else "held"
        return f"<{type(self).__name__} of '{self.endpoint.id}' generation={self.generation} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Lease cannot be copied or pickled: it is counted once")

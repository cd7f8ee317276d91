"""The rule which record answers a request, whole and as of one moment: the slow path of the router."""

from collections.abc import Collection, Iterable

from bonsai_routing._checks import check_name
from bonsai_routing._directory import CHOICE, Directory
from bonsai_routing._record import Record
from bonsai_routing._targets import ids_of, in_order
from bonsai_routing.errors import ContextTooLongError, ModelNotFoundError, NoModelsAvailableError, RoutingError
from bonsai_routing.model_id import ModelId

__all__ = ["find_next", "find_record", "rank", "refusal"]


def find_record(
    directory: Directory, requested_model: ModelId | str | None, required_context: int | None = None
) -> Record:
    """Return the record that answers, or raise the error that explains why there is none."""
    name = requested_model
    if name is not None and not isinstance(name, str):
        name = check_name("requested_model", name)
    record = directory.find_indexed(name)
    if record is CHOICE:
        record = directory.find(name)
    if record is None:
        raise NoModelsAvailableError if name is None else ModelNotFoundError(name)
    if not record.is_ready:
        raise record.not_ready(name)
    if required_context is None or required_context <= record.endpoint.max_context_length:
        return record
    # The tokens may fit into another target, or into the largest context if nothing was requested.
    return find_next(directory, name, required_context)


def find_next(
    directory: Directory,
    name: str | None,
    required_context: int | None,
    key: str | None = None,
    tried: Collection[str] = (),
) -> Record:
    """Return the best record whose id is not in *tried*, or raise the error that explains why there is none."""
    able, others = rank(directory, name, required_context, key)
    for record in able:
        if record.id not in tried:
            return record
    raise refusal(others, name, required_context or 0)


def rank(
    directory: Directory, name: str | None, required_context: int | None, key: str | None
) -> tuple[list[Record], list[tuple[str, Record | None]]]:
    """Return which targets of a name may answer, the best first, and the others, with ``None`` for no record.

    All are as of the same moment. *key* decides between weights; ``None`` leaves them to chance.
    """
    target, records, largest = directory.find_targets(name)
    able: dict[str, Record] = {}
    others: list[tuple[str, Record | None]] = []
    for id in ids_of(target):
        record = records.get(id)
        if (
            record is not None
            and record.is_ready
            and (required_context is None or required_context <= record.endpoint.max_context_length)
        ):
            able[id] = record
        else:
            others.append((id, record))
    ranked = [able.pop(id) for id in in_order(target, name, key) if id in able]
    if (
        name is None
        and not ranked
        and any(record.is_ready for record in records.values())
        and required_context is not None
        and largest is not None
        and required_context <= largest.endpoint.max_context_length
    ):
        # As in the reference, the largest context answers in place of a default that is ready and too small.
        ranked = [largest]
    return ranked, others


def refusal(others: Iterable[tuple[str, Record | None]], name: str | None, required_context: int) -> RoutingError:
    """Return the error that explains why none of these targets may answer."""
    registered = [record for _, record in others if record is not None]
    ready = [record for record in registered if record.is_ready]
    if not registered:
        return NoModelsAvailableError() if name is None else ModelNotFoundError(name)
    if not ready:
        return registered[0].not_ready(name)
    largest = max(ready, key=lambda record: record.endpoint.max_context_length)
    return ContextTooLongError(largest.id, required_context, largest.endpoint.max_context_length)

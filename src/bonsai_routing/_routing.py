"""The rule which record answers a request, whole and as of one moment: the slow path of the router."""

from bonsai_routing._checks import check_name
from bonsai_routing._directory import LARGEST, Directory
from bonsai_routing._record import Record
from bonsai_routing.errors import ContextTooLongError, ModelNotFoundError, NoModelsAvailableError
from bonsai_routing.model_id import ModelId

__all__ = ["find_record"]


def find_record(
    directory: Directory, requested_model: ModelId | str | None, required_context: int | None = None
) -> Record:
    """Return the record that answers, or raise the error that explains why there is none."""
    name = requested_model
    if name is not None and not isinstance(name, str):
        name = check_name("requested_model", name)
    largest = None
    if name is None and required_context is not None:
        record, largest = directory.find_all(None, LARGEST)
    else:
        record = directory.find(name)
    if record is None:
        raise NoModelsAvailableError if name is None else ModelNotFoundError(name)
    if not record.is_ready:
        raise record.not_ready()
    if required_context is None or required_context <= record.endpoint.max_context_length:
        return record
    if largest is not None and required_context <= largest.endpoint.max_context_length:
        return largest
    raise ContextTooLongError(record.id, required_context, record.endpoint.max_context_length)

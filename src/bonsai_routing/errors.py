"""Why a request was not routed."""

__all__ = [
    "ContextTooLongError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "NoModelsAvailableError",
    "RoutingError",
]


class RoutingError(Exception):
    """The base of every error that routing a request can end with.

    Each kind keeps its facts as attributes, tells them with ``str()``, and can be copied and pickled.
    """


class ModelNotFoundError(RoutingError, LookupError):
    """No endpoint and no alias has the requested name.

    ``model`` is the name as it was requested.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"model '{self.model}' not found"


class ContextTooLongError(RoutingError, ValueError):
    """The request needs more context than the model has.

    ``model`` is the id of the endpoint that was asked, or of the default when no model was requested.
    ``required`` is what the request needs and ``available`` is that endpoint's limit, both in tokens.
    """

    def __init__(self, model: str, required: int, available: int) -> None:
        super().__init__(model, required, available)
        self.model = model
        self.required = required
        self.available = available

    def __str__(self) -> str:
        return f"model '{self.model}' cannot handle context length {self.required} (max: {self.available})"


class NoModelsAvailableError(RoutingError):
    """No model was requested and there is no default to answer instead."""

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "no models are currently available"


class ModelNotReadyError(RoutingError):
    """The model exists and does not serve requests at present.

    ``model`` is the endpoint's id, also when an alias was requested.
    ``status`` is the text of its :class:`EndpointStatus`: ``"loading"``, ``"error"`` or ``"disabled"``.
    """

    def __init__(self, model: str, status: str) -> None:
        super().__init__(model, status)
        self.model = model
        self.status = status

    def __str__(self) -> str:
        return f"model '{self.model}' is not ready (status: {self.status})"

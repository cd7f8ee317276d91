"""Why a request was not routed, or an adapter not loaded."""

__all__ = [
    "AdapterBaseError",
    "AdapterConfigError",
    "AdapterLoadedError",
    "ContextTooLongError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "NoModelsAvailableError",
    "RoutingError",
    "StaleGenerationError",
]


class RoutingError(Exception):
    """The base of every error that routing a request or loading an adapter can end with.

    Each kind keeps its facts as attributes, tells them with ``str()``, and can be copied and pickled.
    """


class ModelNotFoundError(RoutingError, LookupError):
    """No endpoint and no alias has the requested name.

    ``model`` is the name as it was requested.
    """

    def __init__(self, model: str) -> None:
        # The error that a server raises most; super() would make raising and catching it take a seventh longer.
        self.args: tuple[str, ...] = (model,)
        self.model = model

    def __str__(self) -> str:
        return f"model '{self.model}' not found"


class ContextTooLongError(RoutingError, ValueError):
    """The request needs more context than the model has.

    ``model`` is the id of the endpoint that was asked, or of the default when no model was requested. Of several
    targets of an alias it is the ready one with the largest context.
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

    ``model`` is the endpoint's id, also when an alias was requested. ``str()`` has this id, as in the reference.
    ``requested`` is the name that was requested, which may be shown to a client; ``None`` if no name was.
    ``status`` is the text of its :class:`EndpointStatus`: ``"loading"``, ``"error"`` or ``"disabled"``.
    ``reason`` is what the server has said about it, for people and not for clients; ``None`` if it has said nothing.
    ``retry_after`` is in how many seconds a client may try again; ``None`` means unknown.
    """

    def __init__(
        self,
        model: str,
        status: str,
        reason: str | None = None,
        retry_after: float | None = None,
        requested: str | None = None,
    ) -> None:
        super().__init__(model, status, reason, retry_after, requested)
        self.model = model
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.requested = requested

    def __str__(self) -> str:
        return f"model '{self.model}' is not ready (status: {self.status})"


class AdapterBaseError(RoutingError, ValueError):
    """An adapter cannot be applied to the base model in question.

    ``adapter`` is the adapter's name or id, ``base_model`` the id of the base endpoint, and ``rule`` what is wrong.
    """

    def __init__(self, adapter: str, base_model: str, rule: str) -> None:
        super().__init__(adapter, base_model, rule)
        self.adapter = adapter
        self.base_model = base_model
        self.rule = rule

    def __str__(self) -> str:
        return f"adapter '{self.adapter}' does not fit base model '{self.base_model}': {self.rule}"


class AdapterConfigError(RoutingError, ValueError):
    """An adapter's configuration file is missing, malformed, or not that of a LoRA adapter.

    ``path`` is the file, ``key`` the key in it, ``None`` for the file as a whole, and ``rule`` what is wrong.
    """

    def __init__(self, path: str, key: str | None, rule: str) -> None:
        super().__init__(path, key, rule)
        self.path = path
        self.key = key
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}" if self.key is None else f"{self.path}: {self.key} {self.rule}"


class AdapterLoadedError(RoutingError, ValueError):
    """Something is registered already under the id that an adapter would get.

    ``model`` is that id.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"adapter '{self.model}' is loaded already"


class StaleGenerationError(RoutingError):
    """The endpoint of an id is not the one that the caller knew: it was replaced or removed meanwhile.

    ``model`` is the id, ``expected`` the generation that the caller knew, ``None`` for no endpoint, and ``present`` the
    one that is there, ``None`` for no endpoint.
    """

    def __init__(self, model: str, expected: int | None, present: int | None) -> None:
        super().__init__(model, expected, present)
        self.model = model
        self.expected = expected
        self.present = present

    def __str__(self) -> str:
        return f"model '{self.model}' has generation {self.present}, not {self.expected}"

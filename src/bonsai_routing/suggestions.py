"""Suggestions for a name that nothing has: what a client may have meant by it."""

import re
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from itertools import islice

from bonsai_routing._checks import check_callable, check_name
from bonsai_routing.endpoint import ModelEndpoint
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["suggestions"]

# What clients append to a name: a tag, a variant of OpenRouter, or a date, as in OpenAI's, Anthropic's and Google's
# names. Four digits are a month with a day or with a year.
_APPENDED = re.compile(
    r"([-:@]latest"
    r"|:(batch|exacto|extended|floor|free|nitro|online|thinking)"
    r"|[-@]([0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8}|[0-9]{4}))\Z"
)

# These four limit the time of a call, however large the registry is: the characters of a name that may be decorated,
# the names that are searched, the characters of a name that is compared, and the names that are compared closely.
_LONGEST_DECORATED = 200
_SEARCHED = 1000
_LONGEST = 64
_COMPARED = 50

# At this ratio, one mistake is nearly always recognised in a name of four characters, and two mistakes in a name of
# seven. At 0.65, "model" would be a suggestion for "code".
_CUTOFF = 0.7


def suggestions(
    registry: ModelRegistry,
    name: ModelId | str,
    *,
    ready: bool = True,
    card: Callable[[ModelEndpoint], Mapping[str, object] | None] | None = None,
) -> list[str]:
    """Return up to three ids and aliases that a client may have meant by *name*, the most likely first.

    All of them are ready, so ``models_response(router, aliases=True)`` lists them; *name* itself is never suggested.
    ``ready=False`` suggests names that are not ready as well, for a server that loads models when they are requested.
    *card* is the function that is passed to :func:`models_response`. A name is not suggested if *card* returns ``None``
    for its endpoint. *card* is called only for names that would be suggested. If it is ``None``, no name is left out.
    Show the suggestions to people: routing never replaces a name by another name.

    First come names without what clients put around them: a provider in front, as in ``openai/bonsai-8b``, and
    ``:latest``, a variant such as ``:free``, or a date behind. Then comes *name* with ``:latest`` or ``-latest``.
    These are looked up in the whole registry, if *name* has at most 200 characters.

    Then come similar names among the first 1,000 names of the registry.
    A name is similar if its :meth:`difflib.SequenceMatcher.ratio` to *name* is at least 0.7, or if it begins or ends
    with *name* and *name* has at least three characters.
    Case is ignored, and names with equal ratios are in alphabetical order.
    Only 50 names are compared: the names that contain the most of the four quarters of *name*.
    A name of more than 64 characters is similar to none.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> suggestions(registry, "Bonsia-8b")
    ['bonsai-8b']
    >>> suggestions(registry, "openai/bonsai-8b:latest")
    ['bonsai-8b']
    """
    if not isinstance(registry, ModelRegistry):
        raise TypeError(f"registry must be a ModelRegistry, not {registry!r}")
    check_callable("card", card)
    name = check_name("name", name)

    def is_listed(candidate: str) -> bool:
        endpoint = _resolve(registry, candidate, ready)
        return endpoint is not None and (card is None or card(endpoint) is not None)

    # A dictionary, because a name may be found in both ways.
    candidates = dict.fromkeys([*_undecorated(name), *_similar(registry, name, ready)])
    return [*islice((each for each in candidates if each != name and is_listed(each)), 3)]


def _resolve(registry: ModelRegistry, name: str, ready: bool) -> ModelEndpoint | None:
    """Return the endpoint that a name maps to; ``None`` if there is none, or if it is to be ready and is not."""
    endpoint = registry.resolve(name)
    return None if endpoint is None or (ready and not endpoint.status.is_available()) else endpoint


def _undecorated(name: str) -> list[str]:
    """Return *name* without what clients put in front and behind, the longest first, and *name* as a latest version."""
    if len(name) > _LONGEST_DECORATED:
        return []
    forms = [name]
    # A name may have both a date and a variant.
    for _ in range(2):
        match = _APPENDED.search(forms[-1])
        if match is not None:
            forms.append(forms[-1][: match.start()])
    found: list[str] = []
    for form in forms:
        while form:
            found.append(form)
            _, _, form = form.partition("/")
    return [*sorted(found, key=len, reverse=True), f"{name}:latest", f"{name}-latest"]


def _similar(registry: ModelRegistry, name: str, ready: bool) -> list[str]:
    """Return the names that are similar to *name*, the most similar first."""
    if len(name) > _LONGEST:
        return []
    wanted = name.lower()
    matcher = SequenceMatcher(b=wanted)
    ranked: list[tuple[float, str]] = []
    for candidate in _candidates(registry, wanted, ready):
        text = candidate.lower()
        matcher.set_seq1(text)
        extends = len(wanted) >= 3 and (text.startswith(wanted) or text.endswith(wanted))
        # The quick ratio is an upper bound of the ratio, and takes a tenth of the time.
        if extends or (matcher.quick_ratio() >= _CUTOFF and matcher.ratio() >= _CUTOFF):
            ranked.append((-matcher.ratio(), candidate))
    return [candidate for _, candidate in sorted(ranked)]


def _candidates(registry: ModelRegistry, wanted: str, ready: bool) -> list[str]:
    """Return the names to compare closely: those that may be suggested and contain the most quarters of *wanted*."""
    # A name of less than half the characters has a ratio below the cutoff.
    fewest = len(wanted) // 2
    names = [
        name
        for name in _first_names(registry)
        if fewest <= len(name) <= _LONGEST and _resolve(registry, name, ready) is not None
    ]
    a, b, c, d = (wanted[len(wanted) * part // 4 : len(wanted) * (part + 1) // 4] for part in range(4))

    def shared(name: str) -> int:
        text = name.lower()
        return (a in text) + (b in text) + (c in text) + (d in text)

    return sorted(names, key=shared, reverse=True)[:_COMPARED]


def _first_names(registry: ModelRegistry) -> list[str]:
    """Return the first ids and aliases of the registry, whether they are ready or not."""
    while True:
        try:
            # The directory has two more keys, which are not text.
            listed = [*islice(registry._directory.tables.names, _SEARCHED + 2)]
        except RuntimeError:
            # Another thread has added or removed a name in the meantime.
            continue
        return [name for name in listed if isinstance(name, str)][:_SEARCHED]

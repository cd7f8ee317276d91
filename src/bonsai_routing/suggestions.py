"""Suggestions for a mistyped model name: the registered names that are similar to it."""

from difflib import SequenceMatcher
from itertools import islice

from bonsai_routing._checks import check_name
from bonsai_routing.model_id import ModelId
from bonsai_routing.registry import ModelRegistry

__all__ = ["suggestions"]

# These two limit the time of a call: the characters of a name, and the names that are compared closely. A close
# comparison takes about as long as the search for the quarters in 200 names.
_LONGEST = 64
_COMPARED = 200

# At this ratio, one mistake is nearly always recognised in a name of four characters, and two mistakes in a name of
# seven. At 0.65, "model" would be a suggestion for "code".
_CUTOFF = 0.7


def suggestions(registry: ModelRegistry, name: ModelId | str) -> list[str]:
    """Return up to three ids and aliases that are similar to *name*, the most similar first.

    All of them resolve, whatever their status; *name* itself is never suggested.
    Show them to people: routing never replaces a name by a similar name.

    A name is suggested if its :meth:`difflib.SequenceMatcher.ratio` to *name* is at least 0.7, or if it begins or ends
    with *name* and *name* has at least three characters.
    Case is ignored, and names with equal ratios are in alphabetical order.
    If the registry has more than 200 names, only 200 are compared: the names that contain the most of the four quarters
    of *name*.
    A name of more than 64 characters gets no suggestions and is never suggested.

    >>> registry = ModelRegistry()
    >>> registry.register(ModelEndpoint("bonsai-8b", "qwen3-8b"))
    >>> suggestions(registry, "Bonsia-8b")
    ['bonsai-8b']
    """
    if not isinstance(registry, ModelRegistry):
        raise TypeError(f"registry must be a ModelRegistry, not {registry!r}")
    name = check_name("name", name)
    if len(name) > _LONGEST:
        return []
    wanted = name.lower()
    matcher = SequenceMatcher(b=wanted)
    ranked: list[tuple[float, str]] = []
    for candidate in _candidates(registry, wanted):
        text = candidate.lower()
        matcher.set_seq1(text)
        extends = len(wanted) >= 3 and (text.startswith(wanted) or text.endswith(wanted))
        # The quick ratio is an upper bound of the ratio, and takes a tenth of the time.
        if extends or (matcher.quick_ratio() >= _CUTOFF and matcher.ratio() >= _CUTOFF):
            ranked.append((-matcher.ratio(), candidate))
    found = (candidate for _, candidate in sorted(ranked) if candidate != name and candidate in registry)
    return [*islice(found, 3)]


def _candidates(registry: ModelRegistry, wanted: str) -> list[str]:
    """Return the names to compare closely: those that contain the most quarters of *wanted*."""
    # A name of less than half the characters has a ratio below the cutoff.
    fewest = len(wanted) // 2
    # This list is made in one step, because another thread may change the dictionary.
    listed = [*registry._directory.tables.names]
    names = [name for name in listed if isinstance(name, str) and fewest <= len(name) <= _LONGEST]
    a, b, c, d = (wanted[len(wanted) * part // 4 : len(wanted) * (part + 1) // 4] for part in range(4))

    def shared(name: str) -> int:
        text = name.lower()
        return (a in text) + (b in text) + (c in text) + (d in text)

    return sorted(names, key=shared, reverse=True)[:_COMPARED]

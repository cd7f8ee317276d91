"""What an alias maps to: an id, or several ids in tiers that are tried in order."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import log
from typing import NamedTuple

from bonsai_routing._checks import check_name, short_repr
from bonsai_routing._metadata import FrozenDict
from bonsai_routing._record import Record
from bonsai_routing.model_id import ModelId

__all__ = [
    "AliasTarget",
    "ShownTarget",
    "Target",
    "Targets",
    "first_ready",
    "ids_of",
    "in_order",
    "leading",
    "make_target",
    "shown",
    "without",
]


# What the caller of ``add_alias()`` gives for each tier.
AliasTarget = ModelId | str | Mapping[str, int] | Mapping[ModelId, int]


# What an alias maps to, as callers see it: an id, or for several targets what ``add_alias()`` takes for each tier.
ShownTarget = str | tuple[str | Mapping[str, int], ...]


class Targets(NamedTuple):
    """The targets of an alias that has several."""

    # A tier is an id, or several ids with weights above 0.
    tiers: tuple[str | Mapping[str, int], ...]
    # Of all tiers in their order, each once.
    ids: tuple[str, ...]
    has_weights: bool


# A single target is its id, as in the reference.
Target = str | Targets


def make_target(targets: Iterable[object]) -> Target:
    """Return what an alias with these arguments of ``add_alias()`` maps to.

    Raises ``TypeError`` or ``ValueError`` when one of *targets* is neither an id nor a mapping of ids to weights, and
    when there is none.
    """
    tiers = [_tier(target) for target in targets]
    if not tiers:
        raise ValueError("an alias must have a target")
    return _joined(tiers)


def shown(target: Target) -> ShownTarget:
    """Return a target as callers see it."""
    return target if isinstance(target, str) else target.tiers


def without(target: Targets, id: str) -> Target | None:
    """Return the other targets; ``None`` if there are none."""
    tiers: list[Mapping[str, int]] = []
    for tier in target.tiers:
        weights = {tier: 1} if isinstance(tier, str) else tier
        others = {other: weight for other, weight in weights.items() if other != id}
        if others:
            tiers.append(others)
    return _joined(tiers) if tiers else None


def ids_of(target: Target | None) -> tuple[str, ...]:
    """Return the ids that an alias maps to; none for ``None``."""
    if target is None:
        return ()
    return (target,) if isinstance(target, str) else target.ids


def in_order(target: Target | None, alias: str | None, key: str | None) -> Sequence[str]:
    """Return the ids that an alias maps to, the best first. An id that is in several tiers comes several times.

    The ids of a tier with weights are in the order of weighted rendezvous hashing: each id draws a number from a hash
    of *alias*, *key* and the id, and its weight says how likely a large number is.
    So a key has the same order everywhere, and an id that comes or goes moves only its own share of the keys.
    With ``None`` as *key*, the order is random.
    The source of the method is "Weighted distributed hash tables" by Schindelhauer and Schomaker (2005).
    """
    if not isinstance(target, Targets):
        return ids_of(target)
    if not target.has_weights:
        return target.ids
    text = f"{alias or ''}\0{os.urandom(16).hex() if key is None else key}\0"
    prefix = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    ids: list[str] = []
    for tier in target.tiers:
        if isinstance(tier, str):
            ids.append(tier)
        else:
            draws = [(_draw(prefix, id) / weight, id) for id, weight in tier.items()]
            draws.sort(reverse=True)
            ids += [id for _, id in draws]
    return ids


def leading(target: Target | None, able: Collection[str]) -> str | None:
    """Return which of the ids in *able* answers most of the requests for an alias; ``None`` if no target is one."""
    if not isinstance(target, Targets):
        return target if target in able else None
    for tier in target.tiers:
        weights = {tier: 1} if isinstance(tier, str) else tier
        found = [id for id in weights if id in able]
        if found:
            return max(found, key=weights.__getitem__)
    return None


def first_ready(ids: Iterable[str], record_of: Callable[[str], Record | None]) -> Record | None:
    """Return the record of the first id that is ready, or else of the first registered; ``None`` if none is."""
    registered = None
    for id in ids:
        record = record_of(id)
        if record is not None:
            if record.is_ready:
                return record
            registered = registered or record
    return registered


def _tier(target: object) -> Mapping[str, int]:
    """Return a tier with weights above 0, also for a single id."""
    if isinstance(target, (str, ModelId)):
        return {str(target): 1}
    if not isinstance(target, Mapping):
        raise TypeError(f"target must be a str, a ModelId or a mapping of ids to weights, not {short_repr(target)}")
    weights = {check_name("the id of a weight", id): weight for id, weight in target.items()}
    for id, weight in weights.items():
        if not isinstance(weight, int) or isinstance(weight, bool):
            raise TypeError(f"the weight of {short_repr(id)} must be an int, not {short_repr(weight)}")
        if not 0 <= weight < 2**63:
            raise ValueError(f"the weight of {short_repr(id)} must be from 0 to 2**63 - 1, not {short_repr(weight)}")
    if not any(weights.values()):
        raise ValueError(f"target must have an id with a weight above 0, not {short_repr(weights)}")
    return {id: weight for id, weight in weights.items() if weight}


def _joined(tiers: list[Mapping[str, int]]) -> Target:
    """Return the targets of these tiers, or the id if there is only one."""
    ids = tuple(dict.fromkeys(id for tier in tiers for id in tier))
    if len(ids) == 1:
        return ids[0]
    plain = tuple(next(iter(tier)) if len(tier) == 1 else FrozenDict(tier) for tier in tiers)
    return Targets(plain, ids, any(len(tier) > 1 for tier in tiers))


def _draw(prefix: blake2b, id: str) -> float:
    """Return the logarithm of a number between 0 and 1, without either, that is a hash of the prefix and *id*."""
    # To hash the prefix for each id would take longer.
    hashed = prefix.copy()
    # A name may hold half of a surrogate pair.
    hashed.update(id.encode("utf-8", "surrogatepass"))
    # 52 bits and a half fit into a float exactly, so the largest number is still below 1.
    return log(((int.from_bytes(hashed.digest()) >> 12) + 0.5) / 2**52)

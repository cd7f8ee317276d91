"""The description of a LoRA adapter."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bonsai_routing._checks import check_name, check_tokens, is_finite, is_rank, short_repr
from bonsai_routing._metadata import EMPTY, freeze
from bonsai_routing._peft import PeftConfig
from bonsai_routing.model_id import ModelId

__all__ = ["LoraAdapter"]


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """The description of a LoRA adapter.

    *base_model* is the id of the endpoint whose model the adapter changes.
    *source* is the path or the URI of the adapter's weights, which only the engine reads.
    *rank* is the largest rank of the adapter's matrices; ``None`` means unknown.
    *scaling* is the factor of the product of the matrices; ``None`` means unknown.
    *max_context_length*, in tokens, may be less than the base's; ``None`` means the base's.
    *trained_on* names the weights that the adapter was trained on; ``None`` means unknown.
    *metadata* holds JSON values of your own, frozen as in a :class:`ModelEndpoint`. The adapter's endpoint has the
    metadata of its base, with these values on top.

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
    metadata: Mapping[str, Any] = field(default=EMPTY, kw_only=True)

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
            raise kind(f"rank must be an int of 1 or more, not {short_repr(self.rank)}")
        if self.scaling is not None and not is_finite(self.scaling):
            kind = ValueError if type(self.scaling) in (int, float) else TypeError
            raise kind(f"scaling must be a finite number, not {short_repr(self.scaling)}")
        if self.max_context_length is not None:
            check_tokens("max_context_length", self.max_context_length)
        # A frozen instance accepts values only through ``object.__setattr__()``.
        object.__setattr__(self, "metadata", freeze("metadata", self.metadata))

    @property
    def id(self) -> ModelId:
        """The id of the adapter's endpoint: ``base:name``."""
        return ModelId(f"{self.base_model}:{self.name}")

    @classmethod
    def from_peft(
        cls, directory: "str | os.PathLike[str]", *, base_model: ModelId | str, name: str | None = None
    ) -> "LoraAdapter":
        """Return the adapter that PEFT saved in *directory*, as its ``adapter_config.json`` describes it.

        *name* is the adapter's name; ``None`` means the name of the directory, or of the repository if the directory is
        a snapshot in a cache of Hugging Face's hub.
        The adapter's ``source`` is the path of the directory.
        Its ``rank`` is the largest rank in ``r`` and ``rank_pattern``.
        Its ``scaling`` is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` for a rank-stabilised adapter, as in PEFT.
        It is ``None`` if ``rank_pattern`` or ``alpha_pattern`` makes it differ between layers.
        Raises :class:`AdapterConfigError` when the file is missing, malformed, or does not describe a LoRA adapter.
        """
        directory = os.fspath(directory)
        config = PeftConfig(os.path.join(directory, "adapter_config.json"))
        config.require_lora()
        return cls(
            _name(directory) if name is None else name,
            check_name("base_model", base_model),
            directory,
            rank=max([config.rank(), *config.rank_pattern().values()]),
            scaling=config.scaling(),
            trained_on=config.trained_on(),
        )


def _name(directory: str) -> str:
    """Return the name of an adapter that is saved in *directory*."""
    directory = os.path.abspath(directory)
    parent, name = os.path.split(directory)
    cache, snapshots = os.path.split(parent)
    # The hub's cache has a folder "models--org--name", with a folder "snapshots/REVISION" in it.
    kind, _, repository = os.path.basename(cache).partition("--")
    if snapshots == "snapshots" and kind == "models" and repository:
        return repository.rpartition("--")[2]
    return name

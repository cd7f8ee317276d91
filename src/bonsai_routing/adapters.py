"""Stacks of LoRA adapters and how much of each."""

from dataclasses import dataclass, field

from bonsai_routing._checks import is_finite

__all__ = ["AdapterRef", "AdapterStack"]

# The distance from 1.0 to the next single-precision number, 1.1920929e-07: what the reference takes for no weight.
_SINGLE_PRECISION_EPSILON = 2.0**-23


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A LoRA adapter, by name, and its blending weight.

    A weight is usually between 0.0 and 1.0, and may be any finite number.
    Raises ``TypeError`` or ``ValueError`` for a name that is no ``str`` or a weight that is no finite number.
    """

    name: str
    weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a str, not {self.name!r}")
        if not isinstance(self.weight, (int, float)) or isinstance(self.weight, bool):
            raise TypeError(f"weight must be a number, not {self.weight!r}")
        if not is_finite(self.weight):
            raise ValueError(f"weight must be a finite number, not {self.weight!r}")
        object.__setattr__(self, "weight", float(self.weight))


@dataclass(slots=True)
class AdapterStack:
    """LoRA adapters to apply one after another, each with its weight.

    An empty stack is false, as everything of length 0 is.
    Not safe to change from several threads at once.

    >>> stack = AdapterStack().add("code", 3).add("math", 1)
    >>> stack.normalize_weights()
    >>> stack.adapters
    [AdapterRef(name='code', weight=0.75), AdapterRef(name='math', weight=0.25)]
    """

    adapters: list[AdapterRef] = field(default_factory=list[AdapterRef])

    def __post_init__(self) -> None:
        self.adapters = list(self.adapters)
        for ref in self.adapters:
            if not isinstance(ref, AdapterRef):
                raise TypeError(f"adapters must hold AdapterRef objects, not {ref!r}")

    def add(self, name: str, weight: float) -> "AdapterStack":
        """Return a new stack with one more adapter at the end; this one stays as it is."""
        return AdapterStack([*self.adapters, AdapterRef(name, weight)])

    def __len__(self) -> int:
        return len(self.adapters)

    def is_empty(self) -> bool:
        """Return whether the stack has no adapters."""
        return not self.adapters

    def total_weight(self) -> float:
        """Return the sum of the weights, 0.0 for an empty stack."""
        # Not sum(): it rounds differently from Python 3.12 on.
        total = 0.0
        for ref in self.adapters:
            total += ref.weight
        return total

    def normalize_weights(self) -> None:
        """Divide the weights, in place, by their sum, so that they add up to 1.0.

        They stay as they are when the sum is closer to zero than the single-precision epsilon, 1.1920929e-07.
        """
        total = self.total_weight()
        if abs(total) < _SINGLE_PRECISION_EPSILON:
            return
        self.adapters[:] = [AdapterRef(ref.name, ref.weight / total) for ref in self.adapters]

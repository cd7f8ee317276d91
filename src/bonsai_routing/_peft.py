"""Reading of ``adapter_config.json``, the file in which PEFT saves the configuration of an adapter."""

import json
import math
from collections.abc import Callable
from itertools import product
from typing import Any

from bonsai_routing._checks import is_finite, is_rank, short_repr
from bonsai_routing._files import read_file
from bonsai_routing.errors import AdapterConfigError

__all__ = ["PeftConfig"]


# What Git stores in place of a file that is kept in Git LFS.
_LFS_POINTER = "version https://git-lfs.github.com/spec/"


class PeftConfig:
    """The contents of an ``adapter_config.json``.

    Each method that returns a value raises :class:`AdapterConfigError` when the value is missing or invalid.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        text = ""
        try:
            text = read_file(path).decode("utf-8")
            values = json.loads(text)
        except FileNotFoundError as error:
            raise self.error(None, "the file does not exist") from error
        except OSError as error:
            raise self.error(None, f"the file cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            rule = f"the file is not JSON: {error}"
            if text.startswith(_LFS_POINTER):
                rule = "the file is a Git LFS pointer, not the file itself; git lfs pull fetches that"
            raise self.error(None, rule) from error
        if not isinstance(values, dict):
            raise self.error(None, f"the file must hold a JSON object, not {short_repr(values)}")
        self.values: dict[str, object] = values

    def error(self, key: str | None, rule: str) -> AdapterConfigError:
        """Return the error for *key*. ``None`` means the whole file."""
        return AdapterConfigError(self.path, key, rule)

    def required(self, key: str) -> object:
        """Return the value of *key*, which must be present."""
        if key not in self.values:
            raise self.error(key, "is missing")
        return self.values[key]

    def require_lora(self) -> None:
        """Raise :class:`AdapterConfigError` when the file does not describe a LoRA adapter of PEFT."""
        # mlx-lm writes a file of the same name with other keys.
        if "peft_type" not in self.values and self.values.keys() & {"fine_tune_type", "lora_parameters"}:
            raise self.error("peft_type", "is missing: the file was written by mlx-lm, not by PEFT")
        kind = self.required("peft_type")
        if kind != "LORA":
            raise self.error("peft_type", f"must be 'LORA', not {short_repr(kind)}")

    def rank(self) -> int:
        """Return ``r``, the rank of each layer that ``rank_pattern`` does not list."""
        value = self.required("r")
        if isinstance(value, int) and is_rank(value):
            return value
        raise self.error("r", f"must be a whole number of 1 or more, not {short_repr(value)}")

    def rank_pattern(self) -> dict[str, int]:
        """Return the rank of each layer, or pattern of layers, that has another rank than ``r``."""
        return self._pattern("rank_pattern", is_rank, "whole numbers of 1 or more")

    def alpha_pattern(self) -> dict[str, float]:
        """Return the alpha of each layer, or pattern of layers, that has another alpha than ``lora_alpha``."""
        return self._pattern("alpha_pattern", is_finite, "finite numbers")

    def _pattern(self, key: str, is_valid: Callable[[object], bool], rule: str) -> dict[str, Any]:
        pattern = self.values.get(key)
        if pattern is None:
            return {}
        if isinstance(pattern, dict) and all(map(is_valid, pattern.values())):
            return pattern
        raise self.error(key, f"must map layers to {rule}, not {short_repr(pattern)}")

    def alpha(self) -> float:
        """Return ``lora_alpha``, the numerator of the scaling."""
        value = self.required("lora_alpha")
        if isinstance(value, (int, float)) and is_finite(value):
            return value
        raise self.error("lora_alpha", f"must be a finite number, not {short_repr(value)}")

    def rank_stabilised(self) -> bool:
        """Return ``use_rslora``: whether the denominator of the scaling is the square root of the rank."""
        value = self.values.get("use_rslora")
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.error("use_rslora", f"must be true, false or null, not {short_repr(value)}")

    def scaling(self) -> float | None:
        """Return the factor of the product of an adapter's matrices; ``None`` if it differs between layers."""
        rank, alpha, ranks, alphas = self.rank(), self.alpha(), self.rank_pattern(), self.alpha_pattern()
        root = math.sqrt if self.rank_stabilised() else float
        # Where two patterns match a layer, the first one of each dictionary counts.
        if [*ranks] == [*alphas]:
            pairs = [*zip(alphas.values(), ranks.values(), strict=True)]
        else:
            pairs = [*product([alpha, *alphas.values()], [rank, *ranks.values()])]
        factors = {numerator / root(denominator) for numerator, denominator in pairs}
        factors.add(alpha / root(rank))
        return factors.pop() if len(factors) == 1 else None

    def trained_on(self) -> str | None:
        """Return the name of the weights that the adapter was trained on. ``None`` means unknown."""
        value = self.values.get("base_model_name_or_path")
        if value is None or isinstance(value, str):
            return value
        raise self.error("base_model_name_or_path", f"must be text or null, not {short_repr(value)}")

"""Reading of ``adapter_config.json``, the file in which PEFT saves the configuration of an adapter."""

import json

from bonsai_routing._checks import is_finite, is_rank
from bonsai_routing.errors import AdapterConfigError

__all__ = ["PeftConfig"]


class PeftConfig:
    """The contents of an ``adapter_config.json``.

    Each method that returns a value raises :class:`AdapterConfigError` when the value is missing or invalid.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
        except FileNotFoundError as error:
            raise self.error(None, "the file does not exist") from error
        except OSError as error:
            raise self.error(None, f"the file cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise self.error(None, f"the file is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise self.error(None, f"the file must hold a JSON object, not {values!r}")
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
            raise self.error("peft_type", f"must be 'LORA', not {kind!r}")

    def rank(self) -> int:
        """Return ``r``, the rank of each layer that ``rank_pattern`` does not list."""
        value = self.required("r")
        if isinstance(value, int) and is_rank(value):
            return value
        raise self.error("r", f"must be a whole number of 1 or more, not {value!r}")

    def rank_pattern(self) -> list[int]:
        """Return the ranks in ``rank_pattern``. An empty list means that all layers have the same rank."""
        pattern = self.values.get("rank_pattern")
        if pattern is None:
            return []
        if isinstance(pattern, dict) and all(is_rank(rank) for rank in pattern.values()):
            return list(pattern.values())
        raise self.error("rank_pattern", f"must map layers to whole numbers of 1 or more, not {pattern!r}")

    def alpha(self) -> float:
        """Return ``lora_alpha``, the numerator of the scaling."""
        value = self.required("lora_alpha")
        if isinstance(value, (int, float)) and is_finite(value):
            return value
        raise self.error("lora_alpha", f"must be a finite number, not {value!r}")

    def rank_stabilised(self) -> bool:
        """Return ``use_rslora``: whether the denominator of the scaling is the square root of the rank."""
        value = self.values.get("use_rslora", False)
        if isinstance(value, bool):
            return value
        raise self.error("use_rslora", f"must be true or false, not {value!r}")

    def trained_on(self) -> str | None:
        """Return the name of the weights that the adapter was trained on. ``None`` means unknown."""
        value = self.required("base_model_name_or_path")
        if value is None or isinstance(value, str):
            return value
        raise self.error("base_model_name_or_path", f"must be text or null, not {value!r}")

"""Whether two names, from a model hub or of folders, mean the same weights."""

import posixpath
import re

__all__ = ["are_the_same_weights", "hub_repository"]

# What the makers of quantised copies append to the name of the weights. Such a copy is made of the same weights, and
# adapters that were trained on it are made to be used with the original.
_QUANTISED = re.compile(
    r"""[-_.](
        (unsloth[-_])?(bnb|bitsandbytes)
        | awq | (auto[-_]?)?gptq(model)? | marlin | hqq | aqlm | eetq | quip | exl[23] | gguf | ggml | mlx | dwq
        | torchao | auto[-_]?round | quanti[sz]ed
        | nf4 | (nv|mx)?fp4
        | (fp8 | int[2-8] | w\d+a\d+)([-_](dynamic|static|block|kv|torchao))*
        | [2-8][-_]?bits?([-_](\d+g|gs?\d+))* | \d(\.\d+)?bpw([-_]h\d+)?
        | (ud[-_])?i?q[1-8]([-_](\d|k|xxs|xs|s|m|l|xl|nl))*
        | bf16 | fp?16 | fp?32 | hf
    )$""",
    re.VERBOSE,
)
_SUFFIX = re.compile(r"\.(gguf|ggml|safetensors|bin|pt|pth)$")

# A folder with such a name, with or without a number, may hold any weights.
_GENERIC = frozenset(
    re.findall(
        r"\w+",
        """
        adapter adapters base best cache checkpoint checkpoints ckpt ckpts data dir epoch epochs exp experiment export
        exports final finetune finetuned folder full global hub iter iteration last latest local lora main master merge
        merged model models my new old out output outputs pytorch release result results run runs snapshot snapshots
        step steps temp test the tmp train trained training v version weight weights
        """,
    )
)


def are_the_same_weights(trained_on: str | None, base_model: str | None) -> bool:
    """Return whether an adapter that was trained on the weights *trained_on* fits a base with the weights *base_model*.

    ``None`` and ``""`` mean unknown weights, which fit everything.
    Two names are the same if they are equal, or if their last segments are, apart from case and from what quantised
    copies append.
    A last segment that names no model, such as ``checkpoint-1000``, is the same only in equal names.
    """
    if not trained_on or not base_model:
        return True
    trained, served = _normal(trained_on), _normal(base_model)
    if trained == served:
        return True
    name = _model_name(trained)
    return name is not None and name == _model_name(served)


def hub_repository(path: str) -> str | None:
    """Return the name of the repository, ``org/name``, if *path* is in a cache of Hugging Face's hub."""
    for segment in reversed(path.replace("\\", "/").split("/")):
        if segment.startswith("models--") and segment != "models--":
            return segment.removeprefix("models--").replace("--", "/")
    return None


def _normal(name: str) -> str:
    name = name.strip().replace("\\", "/")
    # The cache of ModelScope replaces dots.
    name = (hub_repository(name) or name).replace("___", ".")
    # A revision may follow the name of a repository.
    name = re.sub(r"@[^/@]*$", "", name.rstrip("/"))
    return posixpath.normpath(name).casefold()


def _model_name(path: str) -> str | None:
    """Return the name of the model in a normal path; ``None`` if its last segment names no model."""
    segments = path.split("/")
    if len(segments) > 2 and segments[-2] == "snapshots":
        segments = segments[:-2]
    # The hyphen is for a name that is nothing but what quantised copies append.
    name = "-" + _SUFFIX.sub("", segments[-1])
    while (shorter := _QUANTISED.sub("", name)) != name:
        name = shorter
    name = name.removeprefix("-")
    words = re.split(r"[-_. ]+", name)
    if all(word.rstrip("0123456789") in _GENERIC or word.isdigit() or not word for word in words):
        return None
    return None if re.fullmatch(r"(?=.*\d)[0-9a-f]{7,64}|~", name) else name

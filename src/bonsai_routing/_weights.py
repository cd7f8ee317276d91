"""Compares the names of weights: decides whether an adapter that was trained on one name fits a base with another."""

import re

__all__ = ["are_the_same_weights"]

# How the hubs mark copies of a model in another number format or file format. Each list has the words of one position.
_BEFORE = r"ud|i1|imat(?:rix)?|unsloth"
_FORMATS = (
    # Libraries and methods.
    r"bnb|bitsandbytes|awq|gptq|gptqmodel|hqq|aqlm|eetq|quanto|quip|vptq|spqr|higgs|exl[23]|auto-?round|dwq(?:-\d+)?"
    r"|torchao|quark|compressed[-_]tensors|quant|quantized|smoothquant|marlin"
    # File formats.
    r"|gguf|ggml|mlx|mlc|hf"
    # Number formats: 4bit, 4.0bpw, int4wo, fp8, float8dq, nvfp4, mxfp4, nf4, bf16, w4a16, 8da4w.
    r"|(?:[2-8]|16|32)-?bits?(?:gs\d+)?|\d(?:[._]\d+)?bpw|(?:int|uint)[2-8](?:wo|dq)?"
    r"|(?:float|fp|mxfp|nvfp)[468](?:wo|dq|a16)?|nf4|mxint8|bf16|fp?16|fp?32|w\d+(?:a\d+(?:kv\d+)?|g\d+)|8da4w"
    # llama.cpp and MLC: Q4_K_M, IQ2_XXS, TQ1_0, q4f16_1.
    r"|i?q[1-8](?:[-_](?:[01k48]|xxs|xs|s|m|l|xl|nl))*|tq[12][-_]0|q\d+f\d+(?:[-_]\d)?"
)
_AFTER = (
    r"dynamic|block|static|calib|kv|tensor|channel|e4m3(?:fn)?|e5m2|\d+g|gs?\d+|group\d+|h[68]"
    r"|(?:desc[-_])?act(?:order)?|true|false|double|a?sym|inc|ov|openvino|onnx|pv|\d+x\d+|mixed|moe"
)
_SEPARATOR = r"[-_.: ]"
_COPY = re.compile(
    rf"(?:{_SEPARATOR}(?:{_BEFORE}))*{_SEPARATOR}(?:{_FORMATS})(?:{_SEPARATOR}(?:{_BEFORE}|{_FORMATS}|{_AFTER}))*$"
)
_FILE = re.compile(r"(?:-\d{5}-of-\d{5})?\.(?:gguf|safetensors|bin|pth?)$")
_REVISION = re.compile(r"@(?:refs/[^@]*|[^@/]*)$")

# The words of which training programs and people make the names of folders that do not say which model is in them.
_WORD = re.compile(
    r"(?:v?\d+(?:x\d+)?[bkm]?)?|tmp\w{0,8}|(?:actor|adapters?|artifacts?|base|best|cache|chat|checkpoints?|ckpts?"
    r"|consolidated|current|data|default|dir|dpo|epochs?|exp|experiments?|export|final|fine|finetuned?|folder|full"
    r"|ggml|global|hf|hub|huggingface|instruct|it|iter|last|latest|llms?|local|loras?|main|master|merged?|models?"
    r"|my|new|old|out|outputs?|pretrained|pytorch|qlora|release|results?|runs?|safetensors|saved?|sft|snapshots?"
    r"|stage|steps?|target|temp|tests?|train|trained|training|tuned|unsloth|version|weights?)\d*"
)
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{7,64}")
# No file name and no name on a hub is longer.
_LONGEST = 255


def are_the_same_weights(trained_on: str | None, base_model: str) -> bool:
    """Return whether an adapter that was trained on the weights *trained_on* fits a base with the weights *base_model*.

    Each is the name of a model on a hub, or a path; ``None`` and an empty name are unknown, and fit everything.
    Two names fit if they name the same model, which is the last segment of a path, or the repository of a folder in
    a hub's cache. Case, the organisation, the revision and the suffix of a quantised copy do not count.
    A segment such as ``checkpoint-1000`` does not say which model it is, so then the whole paths must be the same.
    """
    if not (trained_on or "").strip() or not base_model.strip():
        return True
    one, other = _segments(str(trained_on)), _segments(base_model)
    if _same_path(one, other):
        return True
    return not _models(one).isdisjoint(_models(other))


def _segments(name: str) -> list[str]:
    """Return the segments of a name or a path, in lower case, without those that do not count."""
    text = _REVISION.sub("", name.strip().replace("\\", "/")).casefold().removeprefix("file://")
    segments: list[str] = []
    for segment in text.split("/"):
        if segment == ".." and segments and segments[-1] not in ("", ".."):
            segments.pop()
        elif segment == ".." or segment.rstrip(". ") or (not segment and not segments):
            segments.append(segment if segment == ".." else segment.rstrip(". "))
    return segments


def _same_path(one: list[str], other: list[str]) -> bool:
    """Return whether two paths are the same, or those of copies in one folder."""
    return one[:-1] == other[:-1] and [_original(each) for each in one[-1:]] == [_original(each) for each in other[-1:]]


def _models(segments: list[str]) -> set[str]:
    """Return the names of the model that a path names: ``model``, and ``org_model`` if the path has an organisation.

    The set is empty if the path does not say which model it is.
    """
    *folders, last = segments or [""]
    if _FILE.search(last) and folders and _says_nothing(_original(last)):
        *folders, last = folders
    # The caches have a folder "models--org--model", with a folder "snapshots/REVISION" in it.
    if last == "snapshots" and folders and folders[-1].startswith("models--"):
        *folders, last = folders
    if len(folders) > 1 and folders[-1] in ("snapshots", "tree"):
        *folders, last, _ = folders
    # The names of the hubs have no "--".
    *organisations, last = [*folders[-1:], *last.split("--")]
    # ModelScope's cache has "___" for a dot.
    model = _original(last.replace("___", "."))
    # The hub redirects meta-llama/Meta-Llama-3.1-8B to meta-llama/Llama-3.1-8B.
    model = re.sub(r"^meta-(?=llama-\d)", "", model)
    if _says_nothing(model):
        return set()
    return {model, *(f"{organisation}_{model}" for organisation in organisations[-1:])}


def _original(segment: str) -> str:
    """Return the name of the model of which a segment names a copy, or the segment itself."""
    if len(segment) > _LONGEST:
        return segment
    # The separator in front makes "4bit" the suffix of an empty name.
    return _COPY.sub("", f"-{_FILE.sub('', segment)}").removeprefix("-")


def _says_nothing(segment: str) -> bool:
    """Return whether a segment does not say which model it is."""
    if _HASH.fullmatch(segment):
        return True
    return all(_WORD.fullmatch(word) for word in re.split(r"[-_. ]", segment))

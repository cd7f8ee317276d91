"""Which adapters fit which base: the name that an adapter was trained on against the name that the base serves."""

import pytest

from bonsai_routing import AdapterBaseError, AdapterRegistry, LoraAdapter, ModelEndpoint, ModelRegistry

HASH = "9c925d64d72725edaf899c6cb9c377fd0709d9c5"
CACHE = f"~/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/{HASH}"

SAME = [
    # A quantised copy has the weights of its original, and its name says so with a suffix.
    ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
    ("unsloth/llama-3-8b-unsloth-bnb-4bit", "unsloth/llama-3-8b"),
    ("unsloth/llama-3-8b-unsloth-bnb-4bit", "unsloth/llama-3-8b-bnb-4bit"),
    ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ", "Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
    ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
    ("RedHatAI/Qwen3-8B-FP8-dynamic", "Qwen/Qwen3-8B"),
    ("RedHatAI/Qwen3-8B-FP8-block", "Qwen/Qwen3-8B"),
    ("amd/Qwen3-8B-FP8-KV", "Qwen/Qwen3-8B"),
    ("RedHatAI/Qwen3-8B-quantized.w4a16", "Qwen/Qwen3-8B"),
    ("RedHatAI/Qwen3-8B-quantized.w8a8", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-W4A16-G128", "Qwen/Qwen3-8B"),
    ("nvidia/Qwen3-8B-NVFP4", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-MXFP4", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-nf4", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-NF4-double-quant", "Qwen/Qwen3-8B"),
    ("RedHatAI/Qwen3-8B-NVFP4A16", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-gptq-w4g128", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-bnb-nf4", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-bnb-8bit", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-4bit", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-8-bit", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B_4bit", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-INT4", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-int8", "Qwen/Qwen3-8B"),
    ("mlx-community/Qwen3-8B-4bit-DWQ", "Qwen/Qwen3-8B"),
    ("lmstudio-community/Qwen3-8B-MLX-4bit", "Qwen/Qwen3-8B"),
    ("mlx-community/Qwen3-8B-bf16", "Qwen/Qwen3-8B"),
    ("mlc-ai/Qwen3-8B-q4f16_1-MLC", "Qwen/Qwen3-8B"),
    ("Intel/Qwen3-8B-int4-AutoRound-inc", "Qwen/Qwen3-8B"),
    ("Intel/Qwen3-8B-AutoRound", "Qwen/Qwen3-8B"),
    ("OpenVINO/Qwen3-8B-int4-ov", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-torchao", "Qwen/Qwen3-8B"),
    ("pytorch/Qwen3-8B-float8dq", "Qwen/Qwen3-8B"),
    ("pytorch/Qwen3-8B-int4wo-hqq", "Qwen/Qwen3-8B"),
    ("mobiuslabsgmbh/Llama-2-7b-chat-4bit_g64-HQQ", "Llama-2-7b-chat"),
    ("turboderp/Qwen3-8B-exl2", "Qwen/Qwen3-8B"),
    ("turboderp/Qwen3-8B-exl3", "Qwen/Qwen3-8B"),
    ("LoneStriker/Mistral-7B-v0.1-4.0bpw-h6-exl2", "mistralai/Mistral-7B-v0.1"),
    ("TheBloke/Mistral-7B-v0.1-GPTQ-4bit-128g-actorder_True", "mistralai/Mistral-7B-v0.1"),
    ("ISTA-DASLab/Mistral-7B-v0.1-AQLM-2Bit-1x16", "mistralai/Mistral-7B-v0.1"),
    ("Qwen/Qwen3-8B-GGUF", "Qwen/Qwen3-8B"),
    ("Qwen/Qwen3-8B-GGUF:Q4_K_M", "Qwen/Qwen3-8B"),
    ("bartowski/Qwen_Qwen3-8B-GGUF", "Qwen/Qwen3-8B"),
    ("mradermacher/Qwen3-8B-i1-GGUF", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B.Q8_0.gguf", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B.i1-IQ2_XXS.gguf", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B-UD-Q4_K_XL.gguf", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B-F16-00001-of-00002.gguf", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B/ggml-model-q4_0.gguf", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B/model.safetensors", "Qwen/Qwen3-8B"),
    ("unsloth/phi-4-bnb-4bit", "microsoft/phi-4"),
    ("org/phi-4-4bit", "microsoft/phi-4"),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b"),
    ("TheBloke/Llama-2-7B-GPTQ", "meta-llama/Llama-2-7b-hf"),
    ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
    ("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "meta-llama/Llama-3.1-8B-Instruct"),
    ("unsloth/llama-3-8b-Instruct-bnb-4bit", "meta-llama/Meta-Llama-3-8B-Instruct"),
    ("bartowski/meta-llama_Llama-3.2-3B-Instruct-GGUF", "meta-llama/Llama-3.2-3B-Instruct"),
    ("mobiuslabsgmbh/Llama-3.1-8b-instruct_4bitgs64_hqq_calib", "meta-llama/Llama-3.1-8B-Instruct"),
    ("mlx-community/Qwen3-4B-Instruct-2507-4bit-DWQ-2510", "Qwen/Qwen3-4B-Instruct-2507"),
    # An empty name is unknown.
    ("", "qwen3-8b"),
    ("  ", "qwen3-8b"),
    (None, "qwen3-8b"),
    # A path names a model with its last folder, and a hub's cache with the folder of the repository.
    (CACHE, "Qwen/Qwen3-8B"),
    (CACHE, "qwen3-8b"),
    (f"{CACHE}/", "Qwen/Qwen3-8B"),
    (CACHE.removesuffix(HASH), "Qwen/Qwen3-8B"),
    (CACHE.replace("/", "\\"), "Qwen/Qwen3-8B"),
    (CACHE.replace("~/.cache/huggingface/hub", "/mnt/shared"), "Qwen/Qwen3-8B"),
    ("models--Qwen--Qwen3-8B", "Qwen/Qwen3-8B"),
    (CACHE.replace("8B", "8B-AWQ"), "Qwen/Qwen3-8B"),
    (CACHE, CACHE.replace(HASH, "main").replace("~", "/root")),
    (f"{CACHE}/Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B"),
    (f"models--gpt2/snapshots/{HASH}", "gpt2"),
    ("~/.cache/modelscope/hub/models/Qwen/Qwen2___5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    (r"C:\models\Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    ("C:\\models\\Qwen2.5-3B-Instruct\\", "Qwen/Qwen2.5-3B-Instruct"),
    ("C:/models\\Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    ("/models/Qwen3-8B/.", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B/checkpoints/..", "Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B.", "Qwen/Qwen3-8B"),
    ("./Qwen3-8B//", "Qwen/Qwen3-8B"),
    ("Qwen/Qwen3-8B@main", "Qwen/Qwen3-8B"),
    ("Qwen/Qwen3-8B@refs/pr/1", "Qwen/Qwen3-8B"),
    ("/home/me@host/Qwen3-8B", "Qwen/Qwen3-8B"),
    ("https://huggingface.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ("https://huggingface.co/Qwen/Qwen3-8B/tree/main", "Qwen/Qwen3-8B"),
    ("hf://Qwen/Qwen3-8B", "qwen3-8b"),
    ("QWEN/QWEN3-8B", "Qwen/Qwen3-8B"),
    ("unsloth/Qwen3-8B", "Qwen/Qwen3-8B"),
    # Paths that are the same.
    ("/runs/mistral/checkpoint-1000", "/runs/mistral/checkpoint-1000/"),
    ("/runs/mistral/merged", "/runs/mistral/x/../merged"),
    ("/runs/mistral/merged", "/runs/mistral/merged-AWQ"),
    (r"C:\runs\mistral\merged", "c:/runs/mistral/merged"),
    ("file:///runs/mistral/merged", "/runs/mistral/merged"),
    (".", "."),
]

NOTHING = ["checkpoint-1000", "checkpoint_final", "models", "model", "merged", "merged_16bit", "output", "outputs"]
NOTHING += [
    "base-model",
    "base_model",
    "final",
    "1",
    "1000",
    "20240501-1200",
    "step1000",
    "7B",
    "8x7B",
    "v2",
    "4bit",
    "AWQ",
]
NOTHING += ["model-q4_0.gguf", "model.safetensors", "best", "latest", "main", "weights", "hf", HASH, "e5ab12f"]
NOTHING += ["huggingface", "unsloth", "tmpab12cd", "iter_0000100", "stage2", "actor", "target", "artifacts"]

OTHER = [
    *((f"/runs/mistral/{name}/", f"/runs/llama/{name}") for name in NOTHING if "." not in name),
    *((f"/runs/mistral/final/{name}", f"/runs/llama/final/{name}") for name in NOTHING),
    *((name, f"org/{name}") for name in NOTHING),
    *((f"org-a/{name}", f"org-b/{name}") for name in NOTHING if "." not in name),
    (".", "qwen3-8b"),
    ("..", "../.."),
    (".", "/"),
    ("/runs/mistral/.", "/runs/llama/."),
    ("/runs/mistral/x/..", "/runs/llama/x/.."),
    ("/runs/Qwen3-8B/checkpoint-1000", "Qwen/Qwen3-8B"),
    (f"{CACHE}/checkpoint-500", "Qwen/Qwen3-8B"),
    ("org-a/llama-7b", "org-b/llama-13b"),
    ("Qwen3-8B", "Qwen3-8B-Instruct"),
    ("Qwen3-8B", "Qwen3-8B-Base"),
    ("Qwen3-8B", "Qwen3-14B"),
    ("Qwen3-8B-Instruct-AWQ", "Qwen3-8B"),
    ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b-Instruct"),
    ("unsloth/llama-3-8b-bnb-4bit", "Qwen/Qwen3-8B"),
    ("gemma-3-4b-it-qat-q4_0-gguf", "google/gemma-3-4b-it"),
    ("Qwen3-8B-AWQ-code", "Qwen3-8B"),
    ("phi-4-bnb-4bit", "phi-2"),
    (CACHE, "Qwen/Qwen3-14B"),
    (CACHE, CACHE.replace("8B", "14B")),
    (r"C:\models\Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen/Qwen3-8B@main", "Qwen/Qwen3-14B@main"),
    ("https://huggingface.co/Qwen/Qwen3-8B/tree/main", "https://huggingface.co/Qwen/Qwen3-14B/tree/main"),
    ("qwen3-8b/lora", "qwen3-8b"),
    ("qwen3-8b:code", "qwen3-8b"),
    ("qwen3", "qwen3-8b"),
]


def load(trained_on: str | None, base_model: str, *, check_base: bool = True) -> None:
    models = ModelRegistry()
    models.register(ModelEndpoint("base", base_model))
    adapters = AdapterRegistry(models)
    adapters.load(LoraAdapter("code", "base", "", trained_on=trained_on), check_base=check_base)


@pytest.mark.parametrize(("trained_on", "base_model"), SAME)
def test_an_adapter_of_the_same_weights_fits(trained_on: str | None, base_model: str) -> None:
    load(trained_on, base_model)
    if trained_on is not None:
        load(base_model, trained_on)


@pytest.mark.parametrize(("trained_on", "base_model"), OTHER)
def test_an_adapter_of_other_weights_is_refused(trained_on: str, base_model: str) -> None:
    for one, other in ((trained_on, base_model), (base_model, trained_on)):
        with pytest.raises(AdapterBaseError):
            load(one, other)
        load(one, other, check_base=False)


def test_the_error_says_how_to_skip_the_comparison() -> None:
    with pytest.raises(AdapterBaseError) as caught:
        load("llama-3", "qwen3-8b")
    assert caught.value.rule == (
        "it was trained on 'llama-3', and the base serves 'qwen3-8b'; "
        "if these are the same weights, set check_base to false"
    )


def test_a_long_name_makes_no_long_error() -> None:
    with pytest.raises(AdapterBaseError) as caught:
        load("a" * 10**6, "b" * 10**6)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["-4bit" * 20_000 + "x", "/" * 10**5, "a/../" * 10**5 + "-", "-" * 10**5 + "x"])
def test_a_long_name_is_compared_at_once(name: str) -> None:
    with pytest.raises(AdapterBaseError):
        load(name, "qwen3-8b")

"""Which adapters fit which base, by the names of the weights."""

import pytest

from bonsai_routing import AdapterBaseError, AdapterRegistry, LoraAdapter, ModelEndpoint, ModelRegistry

SNAPSHOT = "snapshots/9c925d64d72725edaf899c6cb9c377fd0709d9c5"

SAME = [
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ("qwen3-8b", "Qwen/Qwen3-8B"),
    ("org-a/llama-7b", "org-b/llama-7b"),
    # Quantised copies of the same weights.
    ("unsloth/llama-3-8b-bnb-4bit", "unsloth/llama-3-8b"),
    ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "Qwen/Qwen3-8B"),
    ("TheBloke/Mistral-7B-v0.1-AWQ", "mistralai/Mistral-7B-v0.1"),
    ("TheBloke/Llama-2-7B-Chat-GPTQ", "meta-llama/Llama-2-7b-chat-hf"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
    ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
    ("org/Llama-3.1-8B-Instruct-FP8-dynamic", "org/Llama-3.1-8B-Instruct"),
    ("org/Llama-3.1-8B-Instruct-quantized.w4a16", "org/Llama-3.1-8B-Instruct"),
    ("org/Llama-3.1-8B-Instruct-NVFP4", "org/Llama-3.1-8B-Instruct"),
    ("org/Qwen3-8B-W8A8", "org/Qwen3-8B"),
    ("org/Qwen3-8B-bnb-8bit", "org/Qwen3-8B"),
    ("org/Qwen3-8B-NF4", "org/Qwen3-8B"),
    ("org/Qwen3-8B-int4", "org/Qwen3-8B"),
    ("org/Qwen3-8B-4bit-128g", "org/Qwen3-8B"),
    ("org/Qwen3-8B-HQQ", "org/Qwen3-8B"),
    ("org/Qwen3-8B-4.0bpw-h6-exl2", "org/Qwen3-8B"),
    ("mlx-community/Qwen3-8B-4bit", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-MLX-8bit", "Qwen/Qwen3-8B"),
    ("org/Qwen3-8B-AutoRound-GPTQ-4bit", "Qwen/Qwen3-8B"),
    ("Qwen/Qwen3-8B-GGUF", "Qwen/Qwen3-8B"),
    ("models/Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B"),
    ("models/qwen3-8b-q8_0.gguf", "Qwen/Qwen3-8B"),
    ("models/Qwen3-8B-UD-Q4_K_XL.gguf", "Qwen/Qwen3-8B"),
    ("models/Qwen3-8B-IQ4_XS.gguf", "Qwen/Qwen3-8B-BF16"),
    # Unknown weights.
    (None, "Qwen/Qwen3-8B"),
    ("", "Qwen/Qwen3-8B"),
    ("Qwen/Qwen3-8B", ""),
    # The folder names the model.
    (f"~/.cache/huggingface/hub/models--Qwen--Qwen3-8B/{SNAPSHOT}", "Qwen/Qwen3-8B"),
    (f"/data/hub/models--Qwen--Qwen3-8B/{SNAPSHOT}/", "/models/Qwen3-8B"),
    ("/data/hub/models--Qwen--Qwen3-8B", "Qwen/Qwen3-8B"),
    (f"/data/hub/models--gpt2/{SNAPSHOT}", "openai-community/gpt2"),
    (f"C:\\Users\\me\\hub\\models--Qwen--Qwen3-8B\\{SNAPSHOT}".replace("/", "\\"), "Qwen/Qwen3-8B"),
    (f"/models/Qwen3-8B/{SNAPSHOT}", "Qwen/Qwen3-8B"),
    ("/cache/modelscope/hub/Qwen/Qwen2___5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    ("C:\\models\\Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    ("C:/models/Qwen2.5-3B-Instruct/", "Qwen/Qwen2.5-3B-Instruct"),
    ("models\\Qwen2.5-3B-Instruct\\", "./Qwen2.5-3B-Instruct"),
    ("./Qwen3-8B/.", "Qwen/Qwen3-8B"),
    ("../Qwen3-8B//", "Qwen/Qwen3-8B"),
    ("Qwen/Qwen3-8B@main", "Qwen/Qwen3-8B"),
    ("hf://Qwen/Qwen3-8B", "https://huggingface.co/Qwen/Qwen3-8B"),
    ("/models/Qwen3-8B/model/..", "Qwen/Qwen3-8B"),
    # Equal paths, whatever they say.
    ("/runs/llama/checkpoint-1000", "/runs/llama/checkpoint-1000/"),
    ("models\\merged", "models/merged"),
    (".", "./"),
]

DIFFERENT = [
    ("org-a/llama-7b", "org-b/llama-13b"),
    ("Qwen3-8B", "Qwen3-8B-Instruct"),
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"),
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-Coder-7B"),
    ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-14B-AWQ"),
    ("org/mistral-dynamic", "org/mistral"),
    ("org/qwen-unsloth", "org/qwen"),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-8B"),
    ("/runs/mistral/checkpoint-1000", "mistral"),
    ("/runs/mistral/checkpoint-1000", "/runs/mistral/checkpoint-2000"),
    (f"/data/hub/models--Qwen--Qwen3-8B/{SNAPSHOT}", f"/data/hub/models--Qwen--Qwen3-4B/{SNAPSHOT}"),
    (f"/a/mistral/{SNAPSHOT}", f"/a/llama/{SNAPSHOT}"),
    ("/a/9c925d64d72725edaf899c6cb9c377fd0709d9c5", "/b/9c925d64d72725edaf899c6cb9c377fd0709d9c5"),
    *(
        (f"/runs/mistral/{segment}", f"/runs/llama/{segment}")
        for segment in (
            "checkpoint-1000",
            "checkpoint_5",
            "models",
            "model",
            "merged",
            "merged_model",
            "merged-fp16",
            "output",
            "outputs",
            "base-model",
            "base_model",
            "final",
            "best",
            "latest",
            "1000",
            "v2",
            "step-500",
            "epoch3",
            "global_step200",
            "model.safetensors",
            "model-4bit",
            "hf",
            "awq",
            "4bit",
        )
    ),
    (".", "~"),
    ("models/..", "org/models"),
]


def load(trained_on: str | None, base_model: str, check_base: bool = True) -> None:
    models = ModelRegistry()
    models.register(ModelEndpoint("base", base_model))
    adapter = LoraAdapter("code", "base", "adapters/code", trained_on=trained_on)
    AdapterRegistry(models).load(adapter, check_base=check_base)


@pytest.mark.parametrize(("trained_on", "base_model"), SAME)
def test_an_adapter_fits_the_weights_that_it_was_trained_on(trained_on: str | None, base_model: str) -> None:
    load(trained_on, base_model)
    if trained_on is not None:
        load(base_model, trained_on)


@pytest.mark.parametrize(("trained_on", "base_model"), DIFFERENT)
def test_an_adapter_does_not_fit_other_weights(trained_on: str, base_model: str) -> None:
    for pair in ((trained_on, base_model), (base_model, trained_on)):
        with pytest.raises(AdapterBaseError, match="check_base"):
            load(*pair)
        load(*pair, check_base=False)

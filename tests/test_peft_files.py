import json
import math
import pickle
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from config_helpers import NOT_FILES
from lora_helpers import adapters_on_two_bases

from bonsai_routing import AdapterBaseError, AdapterConfigError, AdapterRegistry, LoraAdapter, ModelId

DATA = Path(__file__).parent / "data" / "peft"
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "qwen3-8b"}
MLX = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}


@pytest.fixture
def adapters() -> AdapterRegistry:
    return adapters_on_two_bases()


def saved(directory: Path, config: object = None, **keys: object) -> Path:
    """Write an ``adapter_config.json`` into *directory*, and return *directory*.

    The file has the keys of a plain LoRA adapter, updated with *keys*, or is *config* if that is given.
    """
    directory.mkdir(exist_ok=True)
    text = json.dumps({**PEFT, **keys} if config is None else config)
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    return directory


def refused(directory: Path) -> AdapterConfigError:
    """Return the error that reading *directory* raises, after checking that its facts survive a pickle."""
    with pytest.raises(AdapterConfigError) as caught:
        LoraAdapter.from_peft(directory, base_model="bonsai")
    error = caught.value
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), vars(twin), str(twin)) == (AdapterConfigError, vars(error), str(error))
    assert error.path == str(directory / "adapter_config.json")
    assert str(error).startswith(error.path)
    assert str(error).endswith(error.rule)
    assert error.key is None or f" {error.key} " in str(error)
    return error


@pytest.mark.parametrize(
    ("name", "rank", "scaling", "trained_on"),
    [
        ("code", 8, 2.0, "qwen3-8b"),
        ("chat-rslora", 16, 8.0, "qwen3-8b"),
        ("law-rank-pattern", 32, None, "Qwen/Qwen3-8B"),
        ("math-dora", 4, 2.0, "qwen3-8b"),
    ],
)
def test_what_peft_saved_is_read_as_peft_reads_it(name: str, rank: int, scaling: float | None, trained_on: str) -> None:
    adapter = LoraAdapter.from_peft(DATA / name, base_model="bonsai")
    assert adapter == LoraAdapter(name, "bonsai", str(DATA / name), rank=rank, scaling=scaling, trained_on=trained_on)


def test_what_peft_saved_of_another_kind_is_refused() -> None:
    error = refused(DATA / "ia3")
    assert (error.key, error.rule) == ("peft_type", "must be 'LORA', not 'IA3'")


def test_what_peft_saved_fits_the_base_that_it_names(adapters: AdapterRegistry) -> None:
    for name in ("code", "chat-rslora", "law-rank-pattern", "math-dora"):
        adapters.load(LoraAdapter.from_peft(DATA / name, base_model="bonsai"))
        with pytest.raises(AdapterBaseError):
            adapters.load(LoraAdapter.from_peft(DATA / name, base_model="llama"))
    assert len(adapters) == 4


def test_a_name_may_be_given(tmp_path: Path) -> None:
    adapter = LoraAdapter.from_peft(saved(tmp_path), base_model="bonsai", name="rust")
    assert (adapter.name, adapter.source) == ("rust", str(tmp_path))


@pytest.mark.parametrize("end", ["", "/", "//", "/.", "/../rust"])
def test_the_name_is_that_of_the_directory_however_its_path_ends(tmp_path: Path, end: str) -> None:
    directory = f"{saved(tmp_path / 'rust')}{end}"
    adapter = LoraAdapter.from_peft(directory, base_model="bonsai")
    assert (adapter.name, adapter.source) == ("rust", directory)


def test_the_current_directory_has_a_name_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved(tmp_path / "rust"))
    assert LoraAdapter.from_peft(".", base_model="bonsai").name == "rust"


def test_the_directory_may_be_a_path_object(tmp_path: Path) -> None:
    directory = saved(tmp_path / "rust")
    assert LoraAdapter.from_peft(directory, base_model="bonsai") == LoraAdapter.from_peft(
        str(directory), base_model="bonsai"
    )


def test_the_base_may_be_a_model_id(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path), base_model=ModelId("bonsai"), name="code").base_model == "bonsai"


def test_the_base_must_be_a_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="base_model must be a str or a ModelId, not 5"):
        LoraAdapter.from_peft(saved(tmp_path), base_model=5)  # type: ignore[arg-type]


def test_an_empty_name_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must not be empty"):
        LoraAdapter.from_peft(saved(tmp_path), base_model="bonsai", name="")


@pytest.mark.parametrize("directory", [5, None], ids=repr)
def test_the_directory_must_be_a_path(directory: object) -> None:
    with pytest.raises(TypeError):
        LoraAdapter.from_peft(directory, base_model="bonsai")  # type: ignore[arg-type]


def test_a_base_that_peft_did_not_know_is_unknown(tmp_path: Path) -> None:
    directory = saved(tmp_path, base_model_name_or_path=None)
    assert LoraAdapter.from_peft(directory, base_model="bonsai").trained_on is None


def test_an_alpha_may_be_a_fraction(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, lora_alpha=0.5), base_model="bonsai").scaling == 0.0625


def test_a_pattern_of_smaller_ranks_leaves_the_largest(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, rank_pattern={"q": 4, "v": 2}), base_model="bonsai").rank == 8


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({"rank_pattern": {"q": 64}}, None),
        ({"rank_pattern": {"q": 64}, "use_rslora": True}, None),
        ({"alpha_pattern": {"q": 8}}, None),
        ({"alpha_pattern": {"q": 16.0}}, 2.0),
        ({"rank_pattern": {"q": 8}, "alpha_pattern": {}}, 2.0),
        ({"rank_pattern": {"q": 64, "v": 32}, "alpha_pattern": {"q": 128, "v": 64}}, 2.0),
        ({"rank_pattern": {"q": 64}, "alpha_pattern": {"q": 128}, "use_rslora": True}, None),
        ({"rank_pattern": {"q": 32}, "alpha_pattern": {"q": 32}, "use_rslora": True}, 16 / math.sqrt(8)),
        ({"rank_pattern": {"q": 64}, "alpha_pattern": {"v": 128}}, None),
        ({"rank_pattern": {"q": 64, "v": 32}, "alpha_pattern": {"v": 64, "q": 128}}, None),
        ({"rank_pattern": {"q": 8}, "alpha_pattern": {"v": 16}}, 2.0),
        ({"rank_pattern": None, "alpha_pattern": None, "use_rslora": None}, 2.0),
    ],
    ids=repr,
)
def test_the_scaling_is_known_if_it_is_the_same_in_all_layers(
    tmp_path: Path, keys: dict[str, object], scaling: float | None
) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, **keys), base_model="bonsai").scaling == scaling


@pytest.mark.parametrize("value", [{"q": math.nan}, {"q": "8"}, {"q": True}, {"q": None}, ["q"], "q", 8], ids=repr)
def test_a_saved_pattern_maps_layers_to_alphas(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, alpha_pattern=value))
    assert (error.key, error.rule) == ("alpha_pattern", f"must map layers to finite numbers, not {value!r}")


SNAPSHOT = "9c925d64d72725edaf899c6cb9c377fd0709d9c5"


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (f"models--org--qwen3-8b-code-lora/snapshots/{SNAPSHOT}", "qwen3-8b-code-lora"),
        (f"models--code/snapshots/{SNAPSHOT}", "code"),
        (f"models--org--many/snapshots/{SNAPSHOT}/rust", "rust"),
        ("snapshots/code", "code"),
    ],
)
def test_the_name_of_an_adapter_in_a_cache_of_the_hub_is_its_repositorys(
    tmp_path: Path, folders: str, name: str
) -> None:
    directory = tmp_path / folders
    directory.mkdir(parents=True)
    adapter = LoraAdapter.from_peft(saved(directory), base_model="bonsai")
    assert (adapter.name, adapter.source) == (name, str(directory))


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1021\n"
    (tmp_path / "adapter_config.json").write_text(pointer, encoding="utf-8")
    rule = "the file is a Git LFS pointer, not the file itself; git lfs pull fetches that"
    assert refused(tmp_path).rule == rule


def test_a_base_that_the_file_does_not_name_is_unknown(tmp_path: Path) -> None:
    config = {key: value for key, value in PEFT.items() if key != "base_model_name_or_path"}
    assert LoraAdapter.from_peft(saved(tmp_path, config), base_model="bonsai").trained_on is None


@pytest.mark.parametrize("key", [*PEFT, "rank_pattern", "alpha_pattern", "use_rslora"])
def test_no_message_is_longer_than_a_few_hundred_characters(tmp_path: Path, key: str) -> None:
    values: list[object] = [["x" * 100_000], {"x" * 100_000: None}, [[1] * 100_000]]
    for value in values:
        error = refused(saved(tmp_path, **{key: value}))
        assert len(error.rule) < 400


def test_old_files_know_nothing_of_patterns_and_stabilisation(tmp_path: Path) -> None:
    adapter = LoraAdapter.from_peft(saved(tmp_path), base_model="bonsai")
    assert (adapter.rank, adapter.scaling) == (8, 2.0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert (error.key, error.rule) == (None, "the file does not exist")


def test_a_missing_directory_is_a_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").rule == "the file does not exist"


@pytest.mark.parametrize("make", NOT_FILES)
def test_what_is_not_a_regular_file_is_called_that_and_not_read(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "adapter_config.json")
    error = refused(tmp_path)
    assert (error.key, error.rule) == (None, "the file cannot be read: it is not a regular file")


def test_a_directory_whose_path_holds_nul_is_called_that() -> None:
    assert refused(Path("a\0b")).rule == "the file cannot be read: the path holds a NUL character"


def test_a_file_in_the_directorys_place_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file").key is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'r': 8}",
        b"{} {}",
        json.dumps(PEFT).encode("utf-16"),
        b'{"peft_type": "\xff"}',
        b"[" * 100_000,
        b'{"peft_type":' * 100_000,
        b'{"r": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "quotes", "two", "utf-16", "latin-1", "deep-list", "deep-object", "long-number"],
)
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    error = refused(tmp_path)
    assert error.key is None
    assert error.rule.startswith("the file is not JSON: ")


@pytest.mark.parametrize("config", [[PEFT], "LORA", 8, True, [], "", 0], ids=repr)
def test_json_that_is_no_object_is_refused(tmp_path: Path, config: object) -> None:
    error = refused(saved(tmp_path, config))
    assert error.key is None
    assert error.rule.startswith("the file must hold a JSON object, not ")


def test_json_null_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("null", encoding="utf-8")
    assert refused(tmp_path).rule == "the file must hold a JSON object, not None"


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha"])
def test_each_key_that_is_needed_is_missed(tmp_path: Path, key: str) -> None:
    error = refused(saved(tmp_path, {each: value for each, value in PEFT.items() if each != key}))
    assert (error.key, error.rule) == (key, "is missing")


def test_an_empty_object_is_no_file_of_mlx() -> None:
    # Without the keys of mlx-lm, the file does not show which program wrote it.
    assert "mlx" not in str(AdapterConfigError("file", "peft_type", "is missing"))


@pytest.mark.parametrize("keys", [MLX.keys(), ["fine_tune_type"], ["lora_parameters"]], ids=list)
def test_the_file_of_mlx_is_known_for_what_it_is(tmp_path: Path, keys: list[str]) -> None:
    error = refused(saved(tmp_path, {key: MLX[key] for key in keys}))
    assert (error.key, error.rule) == ("peft_type", "is missing: the file was written by mlx-lm, not by PEFT")


def test_keys_of_mlx_do_not_matter_in_a_file_of_peft(tmp_path: Path) -> None:
    assert LoraAdapter.from_peft(saved(tmp_path, **MLX), base_model="bonsai").rank == 8


@pytest.mark.parametrize("kind", ["IA3", "lora", "", None, ["LORA"], True], ids=repr)
def test_another_type_than_lora_is_refused(tmp_path: Path, kind: object) -> None:
    error = refused(saved(tmp_path, peft_type=kind))
    assert (error.key, error.rule) == ("peft_type", f"must be 'LORA', not {kind!r}")


@pytest.mark.parametrize("value", [0, -8, True, False, 8.0, "8", None, [8], math.nan], ids=repr)
def test_a_saved_rank_is_a_whole_number_of_one_or_more(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, r=value))
    assert (error.key, error.rule) == ("r", f"must be a whole number of 1 or more, not {value!r}")


@pytest.mark.parametrize("keys", [{"lora_alpha": 1.5}, {"use_rslora": True}], ids=repr)
def test_a_saved_rank_beyond_floating_point_is_refused(tmp_path: Path, keys: dict[str, object]) -> None:
    assert refused(saved(tmp_path, r=10**400, **keys)).key == "r"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, False, "16", None, [16]], ids=repr)
def test_a_saved_alpha_is_a_finite_number(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, lora_alpha=value))
    assert (error.key, error.rule) == ("lora_alpha", f"must be a finite number, not {value!r}")


def test_a_saved_alpha_beyond_floating_point_is_no_finite_number(tmp_path: Path) -> None:
    assert refused(saved(tmp_path, lora_alpha=10**400)).key == "lora_alpha"


@pytest.mark.parametrize("value", [1, 0, "true", [True]], ids=repr)
def test_saved_stabilisation_is_true_or_false(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, use_rslora=value))
    assert (error.key, error.rule) == ("use_rslora", f"must be true, false or null, not {value!r}")


@pytest.mark.parametrize(
    "value",
    [{"q": 0}, {"q": 8, "v": -1}, {"q": True}, {"q": 8.0}, {"q": None}, {"q": {"v": 8}}, ["q"], "q", 8, True],
    ids=repr,
)
def test_a_saved_pattern_maps_layers_to_ranks(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, rank_pattern=value))
    assert (error.key, error.rule) == (
        "rank_pattern",
        f"must map layers to whole numbers of 1 or more, not {value!r}",
    )


@pytest.mark.parametrize("value", [[], "", 0, False], ids=repr)
def test_what_is_empty_and_no_object_is_no_pattern(tmp_path: Path, value: object) -> None:
    assert refused(saved(tmp_path, rank_pattern=value)).key == "rank_pattern"


@pytest.mark.parametrize("value", [5, True, ["qwen3-8b"], {}], ids=repr)
def test_a_saved_base_is_text_or_null(tmp_path: Path, value: object) -> None:
    error = refused(saved(tmp_path, base_model_name_or_path=value))
    assert (error.key, error.rule) == ("base_model_name_or_path", f"must be text or null, not {value!r}")


def test_annotations_can_be_evaluated() -> None:
    # test_package asks functions and methods, but not class methods.
    assert typing.get_type_hints(LoraAdapter.from_peft)

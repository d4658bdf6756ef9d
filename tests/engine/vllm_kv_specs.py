"""vLLM's own KV cache specification and parameter count of published models, as JSON on standard output.

Run as `python -m tests.engine.vllm_kv_specs`. vLLM builds each model's layers from its config.json without memory for
the weights; no engine starts. The specifications are added up as an engine does at startup. This is a process of its
own because vLLM sets up process-wide state.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.published import MODELS
from wp1.serving import kv_layout

# Their constructors read a value back from a tensor, which a meta tensor does not have. On the CPU, weights that are
# never written take no memory either.
READS_BACK = ("gemma3n_text", "bloom")


def main() -> None:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm.model_executor.models import registry

    # Without this, vLLM inspects each model's class in a new process, which takes seconds.
    registry._run_in_subprocess = lambda look: look()
    # One folder for all models: the process group's rendezvous file is in it and is needed until this process ends.
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({name: sizes(dict(model.config), Path(folder)) for name, model in MODELS.items()}))


def sizes(config: dict[str, Any], folder: Path) -> dict[str, int]:
    """Parameter count, KV bytes per token, and bytes of recurrent state per request. folder: for temporary files."""
    import torch
    from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.v1.core.kv_cache_utils import get_kv_cache_groups

    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        str(folder), load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, max_model_len=1024
    )
    vllm_config = arguments.create_engine_config()
    with set_current_vllm_config(vllm_config):
        # Models with experts need one more process group.
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/meeting", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        with torch.device("cpu" if config["model_type"] in READS_BACK else "meta"):
            model = initialize_model(vllm_config)
    specs = {}
    for name, layer in get_layers_from_vllm_config(vllm_config, AttentionLayerBase).items():  # type: ignore[type-abstract]
        # A layer that shares another layer's KV has no KV of its own.
        if not getattr(layer, "kv_sharing_target_layer_name", None):
            specs[name] = layer.get_kv_cache_spec(vllm_config)
    # The engine core chooses this layout. It does not affect sizes.
    vllm_config.cache_config.kv_cache_layout = "LBNHC"
    with set_current_vllm_config(vllm_config):
        groups = get_kv_cache_groups(vllm_config, specs)
    kv = kv_layout.measured([kv_layout.layers_of(groups)], shards=1)
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "token_bytes": kv["kv_token_bytes"],
        "state_bytes": kv["kv_state_bytes"],
    }


if __name__ == "__main__":
    main()

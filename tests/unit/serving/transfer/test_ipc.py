"""The connector's settings: when it can be used, why it is chosen, and what the engines get."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from wp1.core.errors import ConfigError
from wp1.machine import hardware
from wp1.serving.transfer import Pools, TransferReport, auto, ipc
from wp1.serving.transfer.ipc import IpcTransfer
from wp1.serving.transfer.nixl import NixlTransfer

GPUS = Pools(2, 2, None)


def _ipc(pools: Pools = GPUS, **words: Any) -> IpcTransfer:
    return IpcTransfer(
        **{"name": "ipc", "pools": pools, "timeout_s": 60.0, "overlap": "on", "at_once_mib": 1, "verify": False} | words
    )


def _choose(pools: Pools) -> Any:
    words = {"timeout_s": 60.0, "environment": {}, "extra": {}}
    return auto.choose(name="auto", pools=pools, direction="push", overlap="on", at_once_mib=1, verify=False, **words)


@pytest.fixture
def little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_shared_memory", lambda: 2**29)


def test_unequal_tensor_parallel_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel=2 and scheduler\.decode_tensor_parallel=1 must be equal"):
        _ipc(Pools(2, 1, None))
    with pytest.raises(ConfigError, match=r"^transfer=mine cannot be used here"):
        _ipc(Pools(2, 1, None), name="mine")


def test_a_model_that_cannot_be_moved_is_refused_and_auto_takes_nixl() -> None:
    pools = Pools(1, 1, None, {"model_type": "mistral", "sliding_window": 4096})
    why = r"a sliding window in all layers \(sliding_window=4096\): use transfer=nixl_push"
    with pytest.raises(ConfigError, match=why):
        _ipc(pools)
    assert isinstance(_choose(pools), NixlTransfer)
    assert re.search(why, _choose(pools).why())


@pytest.mark.usefixtures("little_shared_memory")
def test_too_little_shared_memory_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"needs 1\.00 GiB of shared memory and /dev/shm has 0\.50: enlarge it"):
        _ipc(Pools(1, 1, 2**30))
    assert _ipc(Pools(1, 1, None)).why().startswith("asked for")


@pytest.mark.parametrize(("overlap", "on"), [("on", True), ("off", False)])
def test_overlap(overlap: str, on: bool) -> None:
    assert _ipc(overlap=overlap).overlap is on


def test_auto_takes_ipc_if_it_can_and_states_why() -> None:
    chosen = _choose(GPUS)
    assert isinstance(chosen, IpcTransfer)
    assert (chosen.name, chosen.overlap) == ("ipc", True)
    assert "all engines are on this node" in chosen.why()


@pytest.mark.usefixtures("little_shared_memory")
@pytest.mark.parametrize(
    ("pools", "why"), [(Pools(2, 1, None), "must be equal"), (Pools(1, 1, 2**30), "/dev/shm has 0.50")]
)
def test_auto_takes_nixl_otherwise_and_states_why(pools: Pools, why: str) -> None:
    chosen = _choose(pools)
    assert isinstance(chosen, NixlTransfer)
    assert chosen.name == "nixl_push"
    assert why in chosen.why()


@pytest.mark.parametrize(("role", "kv_role"), [("prefill", "kv_producer"), ("decode", "kv_consumer")])
def test_settings_of_the_engines(role: Any, kv_role: str) -> None:
    settings = _ipc(verify=True).engine_settings(role, "engine-0", 30.0)
    assert (settings["kv_role"], settings["kv_load_failure_policy"]) == (kv_role, "fail")
    assert settings["kv_connector_extra_config"] == {
        "engine": "engine-0",
        "lease_s": 30.0,
        "verify": True,
        "at_once_bytes": 1 << 20,
    }


def test_parameters_of_both_ways() -> None:
    transfer = _ipc()
    assert transfer.prefill_params("h", "decode-0")["wp1"] == {"handoff": "h", "to": "decode-0"}
    given = {"do_remote_prefill": True, "remote_engine_id": "prefill-0", "wp1": {"handoff": "h"}}
    late = transfer.decode_params(given, 40)
    assert late == given | {"wp1_tokens": 40}
    assert "wp1_tokens" not in given
    early = transfer.early_params("h", "prefill-0", 40, wants_token=True)
    assert early["wp1"] == {"handoff": "h", "wants_token": True}
    assert early.keys() - {"do_remote_decode"} == late.keys()
    assert transfer.peer(late) == "prefill-0"


def test_reports_are_read_back_as_written() -> None:
    row = ("h", 1.0, 2.0, 30, None, 0.5, 0.1, 3, 2)
    assert _ipc().reports({"wp1_transfers": [row]}) == [TransferReport(*row)]
    assert _ipc().reports({}) == []


def test_only_the_owner_can_enter_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = os.umask(0)
    try:
        folder = ipc.folder()
    finally:
        os.umask(before)
    assert folder == ipc.folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

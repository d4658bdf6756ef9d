"""Bytes of NIXL's transfers, from vLLM's descriptors in the forms of vLLM 0.26 to 0.33."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from wp1.serving.transfer.nixl_meter import Meter, sizes_of

# Two regions of three blocks each: 100 bytes per block in the first, 40 in the second.
PLAIN = [(1000 + 100 * n, 100, 0) for n in range(3)] + [(9000 + 64 * n, 40, 0) for n in range(3)]
STRIDED = [(1000, 100, 0, 100, 3), (9000, 40, 0, 64, 3)]


class Agent:
    """Answers like NIXL's agent; like NIXL's, its handles are opaque objects."""

    def __init__(self) -> None:
        self.states: dict[Any, str] = {}
        self.released: list[Any] = []

    def get_xfer_descs(self, descs: Any, mem_type: str | None = None) -> Any:
        return object()

    def prep_xfer_dlist(self, agent_name: str, xfer_list: Any, mem_type: str | None = None) -> Any:
        return object()

    def make_prepped_xfer(self, operation: str, *_: Any, **__: Any) -> Any:
        return object()

    def transfer(self, handle: Any) -> str:
        self.states[handle] = "DONE"
        return "PROC"

    def check_xfer_state(self, handle: Any) -> str:
        return self.states[handle]

    def get_xfer_telemetry(self, handle: Any) -> Any:
        raise RuntimeError("telemetry is off")

    def release_dlist_handle(self, handle: Any) -> None:
        self.released.append(handle)


def _moved(meter: Meter, operation: str, local: Any, ids: Any) -> int | None:
    handle = meter.make_prepped_xfer(operation, local, ids, object(), ids, notif_msg=b"7-0a1b2c3d-89abcdef:1")
    meter.transfer(handle)
    meter.check_xfer_state(handle)
    [(request, begin, end, size, failed)] = meter.rows
    assert (request, failed) == ("7-0a1b2c3d-89abcdef", None)
    assert begin <= end
    return size


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("form", [list, lambda rows: np.array(rows, dtype=np.uint64)])
def test_descriptors_made_by_the_agent_first_as_until_vllm_0_32(operation: str, form: Any) -> None:
    meter = Meter(Agent(), 60)
    local = meter.prep_xfer_dlist("NIXL_INIT_AGENT", meter.get_xfer_descs(form(PLAIN), "VRAM"))
    assert _moved(meter, operation, local, np.array([1, 2, 4, 5])) == 2 * 100 + 2 * 40


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_strided_descriptors_given_at_once_as_from_vllm_0_33(operation: str) -> None:
    meter = Meter(Agent(), 60)
    local = meter.prep_xfer_dlist("NIXL_INIT_AGENT", np.array(STRIDED, dtype=np.uint64), mem_type="VRAM")
    assert _moved(meter, operation, local, np.array([0, 2, 3], dtype=np.int32)) == 2 * 100 + 40


def test_addresses_beyond_63_bits_do_no_harm() -> None:
    rows = np.array([[2**64 - 4096, 100, 0, 100, 3]], dtype=np.uint64)
    sizes = sizes_of(rows)
    assert sizes is not None
    assert sizes.of([0, 2]) == 200


def test_each_list_has_its_own_sizes() -> None:
    meter = Meter(Agent(), 60)
    made = meter.get_xfer_descs(PLAIN, "VRAM")
    other = meter.prep_xfer_dlist("NIXL_INIT_AGENT", np.array([(0, 7, 0, 7, 9)], dtype=np.uint64), mem_type="VRAM")
    assert _moved(meter, "WRITE", other, [8, 0]) == 14
    # Its sizes were remembered before another list was prepared, so they must not be used for this one.
    meter.rows = []
    assert _moved(meter, "WRITE", meter.prep_xfer_dlist("NIXL_INIT_AGENT", made), [0]) is None


@pytest.mark.parametrize("strange", [object(), [], [(1, 2)], np.zeros((3, 4))])
def test_an_unknown_form_has_unknown_bytes_rather_than_zero(strange: Any) -> None:
    meter = Meter(Agent(), 60)
    assert _moved(meter, "WRITE", meter.prep_xfer_dlist("NIXL_INIT_AGENT", strange), [0]) is None


def test_the_sizes_of_millions_of_descriptors_take_little_memory() -> None:
    sizes = sizes_of(np.array([(n << 40, 4096, 0, 4096, 2_000_000) for n in range(80)], dtype=np.uint64))
    assert sizes is not None
    assert len(sizes._lengths) == 80
    assert sizes.of(np.arange(1000) * 160_000) == 1000 * 4096


def test_a_list_that_is_released_is_forgotten() -> None:
    agent = Agent()
    meter = Meter(agent, 60)
    local = meter.prep_xfer_dlist("NIXL_INIT_AGENT", np.array(STRIDED, dtype=np.uint64), mem_type="VRAM")
    meter.release_dlist_handle(local)
    assert agent.released == [local]
    assert meter._sizes == {}


def test_errors_and_timeouts_are_reported_as_failures() -> None:
    agent = Agent()
    meter = Meter(agent, 0.0)
    local = meter.prep_xfer_dlist("NIXL_INIT_AGENT", np.array(STRIDED, dtype=np.uint64), mem_type="VRAM")
    for state, told in (("ERR", "ERR"), ("PROC", "TIMEOUT")):
        handle = meter.make_prepped_xfer("WRITE", local, [0], object(), [0], notif_msg=b"7-0a:1")
        meter.transfer(handle)
        agent.states[handle] = state
        assert meter.check_xfer_state(handle) == told
    assert [row[4] for row in meter.rows] == ["NIXL reports ERR", "not complete after 0 s (transfer.timeout_s)"]


# Two agents of NIXL, and descriptors in the form of vLLM 0.33: three blocks of one region and one of the other.
REAL = """
import json, os, time
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config
from wp1.serving.transfer.nixl_meter import Meter

def side(name, byte):
    meter = Meter(nixl_agent(name, nixl_agent_config(backends=["UCX"], capture_telemetry=True)), 10)
    memory = np.full(8 * 4096 + 8 * 4096, byte, dtype=np.uint8)
    meter.register_memory(meter.get_reg_descs([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM"))
    rows = [(memory.ctypes.data, 4096, 0, 4096, 8), (memory.ctypes.data + 8 * 4096, 1024, 0, 4096, 8)]
    return meter, memory, np.array(rows, dtype=np.uint64)

ours, _, our_rows = side("ours", 7)
theirs, arrived, their_rows = side("theirs", 0)
ours.add_remote_agent(theirs.get_agent_metadata())
local = ours.prep_xfer_dlist("NIXL_INIT_AGENT", our_rows, mem_type="DRAM")
remote = ours.prep_xfer_dlist("theirs", their_rows, mem_type="DRAM")
ids = np.array([1, 2, 5, 9], dtype=np.int32)
handle = ours.make_prepped_xfer("WRITE", local, ids, remote, ids, notif_msg=b"7-0a:1")
ours.transfer(handle)
deadline = time.monotonic() + 10
while ours.check_xfer_state(handle) == "PROC" and time.monotonic() < deadline:
    time.sleep(0.001)
told = ours.get_xfer_telemetry(handle).totalBytes
print(json.dumps([ours.rows[0][3], told, int((arrived == 7).sum()), ours.rows[0][4]]), flush=True)
os._exit(0)
"""


def test_a_write_by_nixl_itself_counts_the_bytes_that_arrived() -> None:
    pytest.importorskip("nixl")
    environment = os.environ | {"UCX_TLS": "tcp,self,sm", "UCX_NET_DEVICES": "lo"}
    asked = [sys.executable, "-c", REAL]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert ran.returncode == 0, ran.stderr
    counted, told, arrived, failed = json.loads(ran.stdout.strip().splitlines()[-1])
    assert failed is None
    assert counted == told == arrived == 3 * 4096 + 1024

"""Shares of the peaks where the times follow from a formula, and what is said to limit a cell."""

import numpy as np
import pytest

from tests.unit.analysis.timed import LLAMA_8B, alone, metadata, request, table, together
from wp1.analysis import roofline, spans
from wp1.analysis.roofline import Device, bound, words

ONE = Device(flops=1e15, bytes_per_s=3e12, prefill=1, decode=1)


def test_mfu_is_one_where_prefill_takes_what_its_flops_take() -> None:
    took = LLAMA_8B.prefill_flops(4096) / ONE.flops
    found = roofline.roofline(alone(lambda _: took, [4096]), LLAMA_8B, ONE)
    assert found["mfu"]["value"] == pytest.approx(1, rel=1e-3)
    assert (found["mfu"]["n"], found["prefill_bound"]) == (3, "compute")
    twice = roofline.roofline(alone(lambda _: 2 * took, [4096]), LLAMA_8B, ONE)
    assert twice["mfu"]["value"] == pytest.approx(0.5, rel=1e-3)


def test_mbu_is_one_where_a_step_takes_what_its_bytes_take() -> None:
    # Eight steps of contexts 4,097 to 4,104, alone.
    took = LLAMA_8B.decode_bytes(8 * 4096 + 36, 8) / ONE.bytes_per_s / 8
    found = roofline.roofline(alone(lambda _: 0.1, [4096], step_s=took), LLAMA_8B, ONE)
    assert found["mbu"]["value"] == pytest.approx(1, rel=1e-3)
    assert found["decode_bound"] == "memory"
    assert found["batch"]["value"] == pytest.approx(1)
    assert found["shared"]["value"] == 0


def test_a_batch_shares_the_weights_and_not_the_kv() -> None:
    rows = [request("c", 0, n, 0.0, 4096, 101, 0.1, 0.01) for n in range(8)]
    found = roofline.roofline(table(rows), LLAMA_8B, ONE)
    assert found["batch"]["value"] == pytest.approx(8)
    step = LLAMA_8B.step_bytes + 8 * LLAMA_8B.kv_bytes * (4096 + 50.5 + 1)
    assert found["decode_bytes_per_s"]["value"] == pytest.approx(step / 0.01, rel=1e-3)


def test_engines_side_by_side_are_measured_against_all_their_devices() -> None:
    took = LLAMA_8B.prefill_flops(4096) / ONE.flops
    rows = [request("c", 0, n, 0.0, 4096, 9, took, 0.01, engine=f"agg-{n}") for n in range(2)]
    both = roofline.device_of(metadata(engines=2), "agg")
    assert both is not None
    assert (both.prefill, both.decode) == (2, 2)
    assert roofline.roofline(table(rows), LLAMA_8B, both)["mfu"]["value"] == pytest.approx(1, rel=1e-3)
    # One engine idle half of the time is half of the devices unused.
    rows[1]["t_scheduled"] += took
    rows[1]["t_engine_first_token"] += took
    assert roofline.roofline(table(rows), LLAMA_8B, both)["mfu"]["value"] == pytest.approx(0.5, rel=1e-3)


def test_decode_beside_prefills_is_seen() -> None:
    found = roofline.roofline(table(together(1024, 4, prefill_s=0.5, step_s=0.2)), LLAMA_8B, ONE)
    assert found["shared"]["value"] > 0.3
    assert "decode gives way to prefills" in words(found)


def test_without_shape_or_peak_there_is_batch_and_no_share() -> None:
    found = roofline.roofline(alone(lambda _: 0.1, [64]), None, None)
    assert (found["mfu"], found["mbu"], found["prefill_bound"]) == (None, None, None)
    assert found["batch"]["value"] == pytest.approx(1)
    assert roofline.why_not({"model": {}}) == "the model's shape is not known"
    assert "wp1.peaks" in (roofline.why_not(metadata() | {"peaks": None}) or "")
    assert roofline.why_not(metadata()) is None


def test_no_requests_give_no_figures() -> None:
    assert roofline.roofline(table([]), LLAMA_8B, ONE)["mfu"] is None


def test_the_longer_of_both_times_is_the_roof() -> None:
    assert bound(1.0, 0.1, 2.0) == "compute"
    assert bound(0.1, 1.0, 2.0) == "memory"
    assert bound(0.1, 0.2, 2.0) == "neither"
    assert bound(1.0, 1.0, 0.0) is None


def test_words_name_the_queue_first() -> None:
    found = roofline.roofline(alone(lambda _: 0.1, [4096]), LLAMA_8B, ONE)
    assert words(found, 0.8).startswith("TTFT is 80 % waiting; prefill by compute (MFU")


def test_unions_by_hand() -> None:
    union = spans.merged([np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[0.5, 2.0], [4.0, 5.0]])])
    assert union.tolist() == [[0, 2], [3, 5]]
    assert spans.length(union) == 4
    assert spans.overlap(union, np.array([[1.0, 3.5]])) == 1.5
    assert spans.overlap(union, np.empty((0, 2))) == 0
    assert spans.inside(np.array([-1, 0, 2, 2.5, 3, 6]), union).tolist() == [False, True, True, False, True, False]
    assert spans.inside(np.array([1.0]), np.empty((0, 2))).tolist() == [False]

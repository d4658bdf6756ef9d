"""Shares of the peaks where the times follow from a formula, and what is said to limit a cell."""

import polars as pl
import pytest

from tests.unit.analysis.timed import LLAMA_8B, alone, metadata, request, table, together
from wp1.analysis.device import roofline
from wp1.analysis.device.roofline import Device, bound, words

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
    assert "decode runs beside prefills" in words(found)


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
    assert words(found, 0.8).startswith("80 % of TTFT is queueing; prefill is compute-bound (MFU")


def test_prompt_tokens_from_the_cache_are_not_computed() -> None:
    """Seven eighths of each prompt cached, the device at half of its peak: MFU is 50 %, not 376 %."""
    cached = 4096 * 7 // 8
    took = 2 * LLAMA_8B.prefill_flops(4096, cached) / ONE.flops
    requests = alone(lambda _: took, [4096]).with_columns(cached_tokens=pl.lit(cached))
    assert roofline.roofline(requests, LLAMA_8B, ONE)["mfu"]["value"] == pytest.approx(0.5, rel=1e-3)


def test_decoding_reads_the_kv_of_cached_tokens() -> None:
    requests = alone(lambda _: 0.1, [4096])
    cached = requests.with_columns(cached_tokens=pl.lit(4095))
    assert roofline.roofline(cached, LLAMA_8B, ONE)["mbu"] == roofline.roofline(requests, LLAMA_8B, ONE)["mbu"]


def test_a_decode_engine_that_gives_the_first_token_takes_a_step_more() -> None:
    rows = [
        request("c", 0, 0, 0.0, 4096, 9, 0.1, 0.01)
        | {"t_decode_scheduled": 0.1, "t_decode_first_token": 0.11, "decode_engine": "decode-0"}
    ]
    rows[0]["t_tokens"] = [t + 0.01 for t in rows[0]["t_tokens"]]
    rows[0]["t_engine_last_token"] += 0.01
    requests = table(rows)
    assert requests["first_by_decode"].to_list() == [True]
    # Nine steps, the first over the prompt's 4,096 tokens, the others over one more each.
    expected = LLAMA_8B.decode_bytes(9 * 4096 + 36, 9)
    found = roofline.roofline(requests, LLAMA_8B, ONE)["decode_bytes_per_s"]
    assert found["value"] == pytest.approx(expected / 0.09, rel=1e-3)


def test_the_likelihood_of_a_prompt_takes_logits_at_every_token() -> None:
    requests = alone(lambda _: 0.1, [1024])
    scored = requests.with_columns(nll_window=pl.lit(64))
    plain, with_all = (roofline.roofline(r, LLAMA_8B, ONE)["prefill_flops_per_s"]["value"] for r in (requests, scored))
    assert with_all - plain == pytest.approx(2 * LLAMA_8B.head_parameters * 1023 / 0.1, rel=1e-3)


def test_an_engine_that_keeps_other_kv_than_the_configuration_gives_has_no_figure() -> None:
    known = metadata()
    engine = known["pools"][0]["engines"][0]
    engine["settings"]["kv_token_bytes"] = LLAMA_8B.kv_bytes
    assert roofline.why_not(known) is None
    engine["settings"]["kv_token_bytes"] = 2 * LLAMA_8B.kv_bytes
    assert "engine agg-0 keeps 262,144 bytes of KV per token" in (roofline.why_not(known) or "")
    assert roofline.shape_of(known)[0] is None


def test_why_there_is_no_shape_is_said_in_the_words_of_the_run() -> None:
    said = "the configuration does not state intermediate_size"
    assert roofline.why_not({"model": {"shape": None, "why_no_shape": said}}) == said

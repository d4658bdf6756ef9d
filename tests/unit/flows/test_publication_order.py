"""The metrics that MLflow's comparison pages open with."""

from wp1.tracking.metrics import metrics_of


def _latency(mean: float) -> dict:
    return {"requests": 2, "ttft_ms": {"mean": mean, "p99": 2 * mean}, "tpot_ms": {"mean": 1.0}, "e2e_ms": {}}


SUMMARY = {"profiling": {"device": {"cells": {}}, "latency": {"overall": _latency(5.0)}}, "slo": {"attainment": None}}


def test_latencies_come_first_by_order_and_by_name() -> None:
    """One page takes the first metric, another sorts them by name."""
    found = metrics_of(SUMMARY)
    first = ["_latency/ttft_ms_mean", "_latency/ttft_ms_p99", "_latency/tpot_ms_mean"]
    assert list(found)[:3] == first
    assert sorted(found)[0].startswith("_latency/")
    assert found["_latency/ttft_ms_mean"] == 5.0


def test_arms_are_told_apart() -> None:
    compared = {"arms": ["agg", "disagg"], "overall": {"agg": _latency(5.0), "disagg": _latency(7.0)}, "cells": {}}
    from wp1.tracking import metrics

    found = dict(metrics._headlines(SUMMARY, compared))
    assert found["_latency/ttft_ms_mean.agg"] == 5.0
    assert found["_latency/ttft_ms_mean.disagg"] == 7.0
    assert "_latency/e2e_ms_mean.agg" not in found

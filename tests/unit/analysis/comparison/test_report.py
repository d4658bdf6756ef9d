"""What a report says of two arms beside their figures: who shares a GPU, which limits, what is not judged."""

from typing import Any

from wp1.analysis.comparison.report import sharing, tables_of


def _pool(arm: str, phases: list[str], devices: list[str]) -> dict[str, Any]:
    return {
        "arm": arm,
        "phases": phases,
        "engines": [{"name": f"{arm}-{n}", "devices": [d]} for n, d in enumerate(devices)],
    }


def _disagg(prefill: str, decode: str) -> list[dict[str, Any]]:
    return [_pool("disagg", ["prefill"], [prefill]), _pool("disagg", ["decode"], [decode])]


def _agg(*devices: str) -> dict[str, Any]:
    return _pool("agg", ["prefill", "decode"], list(devices))


def test_two_engines_each_on_one_gpu() -> None:
    said = sharing([_agg("cuda:1", "cuda:1"), *_disagg("cuda:1", "cuda:1")], ["agg", "disagg"])
    assert said == (
        "Both arms are two engines on one GPU, which they share; to give one engine the whole GPU: "
        "`arms.agg.replicas=1`."
    )


def test_one_engine_against_two_on_the_same_gpu() -> None:
    said = sharing([_agg("cuda:0"), *_disagg("cuda:0", "cuda:0")], ["agg", "disagg"])
    assert said == (
        "agg is one engine with the GPU to itself; disagg is two engines on the same GPU, which share it and its "
        "memory."
    )


def test_nothing_is_shared_on_separate_gpus_and_without() -> None:
    assert sharing([_agg("cuda:0", "cuda:1"), *_disagg("cuda:0", "cuda:1")], ["agg", "disagg"]) == ""
    assert sharing([_agg("cpu:0", "cpu:1"), *_disagg("cpu:0", "cpu:1")], ["agg", "disagg"]) == ""
    assert sharing([_agg("cuda:0"), *_disagg("cuda:0", "cuda:1")], ["agg", "disagg"]) == ""


def test_a_table_says_why_something_is_not_judged() -> None:
    figure = {"n_yarn": 15, "n_unscaled": 15, "yarn": 56.9, "unscaled": 198.0, "delta": 141.1, "ratio": 3.48}
    found = {
        "arms": ["yarn", "unscaled"],
        "cells": {"4096-conc1": {"e2e_ms/mean": {**figure, "low": 90.6, "high": 195.0, "excludes_zero": None}}},
        "unlike_lengths": {"4096-conc1": {"pairs": 15, "unlike": 12, "a": 9.5, "b": 80.8}},
        "goodput": {"yarn": [], "unscaled": []},
        "slo": {},
    }
    page = tables_of(found)
    assert "| [+90.6, +195] | — |" in page
    assert "Answers to 12 of 15 requests differ in length (mean output tokens 9.5 and 80.8)" in page
    assert "differ in length" not in tables_of({**found, "unlike_lengths": {}})

"""Peaks: which row of the table a GPU has, and that measurements are cached and found again."""

import json
from pathlib import Path

import pytest

from wp1.core.errors import ConfigError
from wp1.machine import peaks
from wp1.machine.stated_peaks import STATED, stated


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_a_card_is_found_by_nvmls_name(name: str, line: str) -> None:
    assert stated(name) is STATED[line]


def test_cards_that_are_not_in_the_table_have_no_peak() -> None:
    assert stated("NVIDIA L400") is None
    assert stated("NVIDIA H100 MIG 1g.10gb") is None
    assert stated("NVIDIA GeForce GTX 1080") is None


def test_every_row_has_a_source_and_plausible_figures() -> None:
    for line in STATED.values():
        assert 1e14 < line.flops < 1e16
        assert 1e11 < line.bytes_per_s < 1e13
        assert "NVIDIA" in line.source


CPU = {"device_type": "cpu", "gpus": [], "cpu": "EPYC", "cores": 2}
GPU = {"device_type": "cuda", "gpus": [{"name": "NVIDIA H100 80GB HBM3"}], "cpu": "EPYC", "cores": 2}


def test_a_measurement_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WP1_CACHE", str(tmp_path / "cache"))
    assert peaks.known(CPU) is None
    found = peaks.Peaks("EPYC, 2 cores", 1e12, 3e10, "measured", "a test")
    peaks.keep(found)
    peaks.keep(peaks.Peaks("another", 1e12, 3e10, "measured", "a test"))
    assert peaks.known(CPU) == found
    assert len(json.loads((tmp_path / "cache" / "peaks.json").read_text())) == 2
    # Other work can only lower a figure.
    both = peaks.keep(peaks.Peaks("EPYC, 2 cores", 2e12, 1e10, "measured", "a test"))
    assert (both.flops, both.bytes_per_s) == (2e12, 3e10)
    assert peaks.known(CPU) == both
    (tmp_path / "cache" / "peaks.json").write_text("{")
    assert peaks.known(CPU) is None


def test_a_stated_peak_takes_precedence_over_a_measured_one() -> None:
    found = peaks.known(GPU)
    assert found is not None
    assert (found.kind, found.flops) == ("stated", 989.4e12)


def test_it_is_measured_only_if_requested_and_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WP1_CACHE", str(tmp_path))
    asked = []
    measured = peaks.Peaks("EPYC, 2 cores", 1e12, 3e10, "measured", "a test")
    monkeypatch.setattr(peaks, "measured_apart", lambda: asked.append(1) or measured)
    said: list[str] = []
    assert peaks.for_run(CPU, False, said.append) is None
    assert peaks.for_run(GPU, True, said.append)["kind"] == "stated"  # type: ignore[index]
    assert (asked, said) == ([], [])
    assert peaks.for_run(CPU, True, said.append)["flops"] == 1e12  # type: ignore[index]
    assert len(asked) == len(said) == 1


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WP1_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="WP1_CACHE"):
        peaks.keep(peaks.Peaks("x", 1.0, 1.0, "measured", "a test"))


def test_this_machine_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SECONDS_EACH", 0.05)
    found = peaks.measure("here")
    # Plausible bounds for any machine that runs tests.
    assert 1e9 < found.flops < 1e17
    assert 1e8 < found.bytes_per_s < 1e14

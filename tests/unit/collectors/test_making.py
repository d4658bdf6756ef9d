"""Collectors of a configuration may be anybody's; of a folder's only wp1's own are made."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis import outside
from wp1.collectors import Collector
from wp1.collectors.making import collectors_in, collectors_of, kept_in
from wp1.core.errors import ConfigError
from wp1.core.run_folder import RunFolder, read_config, write_json

SMALL = Shape(lengths=(256,), rates=(0,), repeats=1, count=2)


class Counting(Collector):
    """One that needs no more than `profile`, with a setting."""

    def __init__(self, of: int = 1) -> None:
        self.of = of

    def profile(self, run: Any, requests: Any) -> dict[str, Any]:
        return {"counted": self.of}


class NoCollector:
    def profile(self, run: Any, requests: Any) -> dict[str, Any]:
        return {}


def part(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{name}", **settings}


def test_one_from_outside_is_made_and_goes_by_its_key() -> None:
    (made,) = collectors_of({"collectors": {"mine": part("Counting", of="3")}})
    assert (made.name, made.profile(None, None)) == ("mine", {"counted": 3})  # type: ignore[arg-type]
    made.start(Path(), [])
    made.stop()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (part("NoCollector"), "is not a collector: it has no start()"),
        (part("Counting", off=1), "unknown key collectors.mine.off: did you mean collectors.mine.of?"),
        (part("Counting", of="x"), "full_key: collectors.mine.of"),
        (None, "collectors.mine=None is not a collector: it must be an object"),
        ({}, "collectors.mine._target_ has no value"),
    ],
)
def test_one_that_cannot_be_made_is_refused_by_its_key(found: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        collectors_of({"collectors": {"mine": found}})
    assert said in str(refused.value)


def test_of_a_folder_only_wp1_s_own_are_made_and_of_others_the_figures_are_kept(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, SMALL)
    config = read_config(run_dir)
    named = config["collectors"] | {"mine": part("Counting"), "none": part("Counting"), "latency": {"_target_": "os.x"}}
    (run_dir / "config.yaml").write_text(json.dumps(config | {"collectors": named}))
    write_json(run_dir / "summary.json", {"profiling": {"mine": {"counted": 5}, "latency": {"cells": "garbage"}}})
    assert [made.name for made in collectors_in(RunFolder(run_dir))] == ["kv_transfer"]
    # What stands under the name of one of wp1's own is made of the folder, or not there.
    assert kept_in(RunFolder(run_dir)) == {"mine": {"counted": 5}, "none": {}, "latency": {}}
    (run_dir / "summary.json").unlink()
    assert kept_in(RunFolder(run_dir)) == {"mine": {}, "none": {}, "latency": {}}


def test_a_collector_without_a_section_of_its_own_is_shown_in_a_table() -> None:
    page = outside.section({"mine": {"p50": 1.0}, "load": {"p50": 1.0}})
    assert "## Collector mine" in page
    assert "Collector load" not in page

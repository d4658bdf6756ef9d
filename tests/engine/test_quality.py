"""E6 end to end on real vLLM and the bundled model, with short prompts. E4 is in test_commands.py."""

from pathlib import Path

import pytest

from tests.engine.conftest import Start, completed, configuration
from wp1.core.run_folder import read_json
from wp1.serving.engines import Engines


def test_e6_compares_yarn_with_the_unscaled_control(engines: Engines, tmp_path: Path) -> None:
    cfg = configuration(
        tmp_path,
        "experiment=e6",
        "tracking=none",
        "experiment.measure_peaks=false",
        "dataset.samples_per_task=1",
        "model.max_len=16384",
        "dataset.prompt_lens=[512,1024]",
        "dataset.tasks=[niah_single_1,pg19_perplexity]",
        "dataset.depths=[0,100]",
        "workload.num_warmup=1",
        "workload.max_warmup=1",
    )
    folder = completed(cfg, engines).run_dir
    summary, metadata = read_json(folder / "summary.json"), read_json(folder / "run_metadata.json")
    arms = summary["quality"]["arms"]
    assert set(arms) == {"yarn", "unscaled"}
    for arm in arms.values():
        assert {(row["length"], row["depth"]) for row in arm["needles"]} == {
            (512, 0.0), (512, 100.0), (1024, 0.0), (1024, 100.0),
        }  # fmt: skip
        assert [row["to"] for row in arm["perplexity"]] == [512, 1024]
    assert arms["unscaled"]["overall"]["mean"] > 0
    ropes = metadata["ropes"]
    assert (ropes["yarn"]["type"], ropes["yarn"]["factor"], ropes["yarn"]["max_len"]) == ("yarn", 2.0, 16384)
    assert (ropes["unscaled"]["type"], ropes["unscaled"]["max_len"]) == ("default", 8192)
    # The scaling that the engines report.
    in_effect = {pool["arm"]: pool["engines"][0]["settings"]["rope"] for pool in metadata["pools"]}
    assert (in_effect["yarn"]["rope_type"], in_effect["yarn"]["factor"]) == ("yarn", 2.0)
    assert in_effect["unscaled"].get("rope_type", "default") == "default"
    assert summary["quality"]["differences"]["n"] == 4
    page = next((folder.parent / "reports").glob("*.md"))
    assert (page.with_suffix("") / "needles.png").is_file()


@pytest.mark.parametrize("experiment", ["e4", "e6"])
def test_random_weights_are_refused_before_an_engine_starts(start: Start, experiment: str) -> None:
    run = start(f"experiment={experiment}", "model=llama31_8b_shape")
    code, output = run.finish()
    assert code == 2
    assert "answers of random weights mean nothing" in output

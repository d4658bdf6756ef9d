"""Of what a run came: a command for any machine, a commit that is said not to be all, and a model with its size."""

from wp1.analysis.base import provenance

SMALL = {
    "name": "smollm2_135m", "random_weights": False, "weight_bytes": 269_060_552,
    "shape": {"element_bytes": 2, "unlike": None},
}  # fmt: skip


def test_the_command_has_no_folder_of_the_machine_that_it_ran_on() -> None:
    metadata = {"command": ["wp1", "experiment=e3", "experiment.prompt_lens=[1,2]", "root=/somewhere"], "sweep": None}
    assert provenance.command_of(metadata) == "python -m wp1 experiment=e3 'experiment.prompt_lens=[1,2]'"
    job = {"overrides": ["scheduler=agg", "root=/somewhere"]}
    assert provenance.command_of(metadata | {"sweep": job}) == "python -m wp1 scheduler=agg"


def test_local_changes_are_said() -> None:
    assert provenance.code_of({"commit": "69a06faabd3746834d", "dirty": False}) == "`69a06faabd37`"
    assert provenance.code_of({"commit": "69a06faabd3746834d", "dirty": True}) == "`69a06faabd37` with local changes"


def test_answers_are_somebodys() -> None:
    assert provenance.answers_of(SMALL, 0.2) == (
        "Answers are from `smollm2_135m`, a model of 135 million parameters, sampled at a temperature of 0.2. A "
        "model this small is often wrong or repeats itself, which says nothing about the serving."
    )
    large = {**SMALL, "name": "llama31_8b", "weight_bytes": 16_060_000_000}
    assert provenance.answers_of(large, 0.0) == (
        "Answers are from `llama31_8b`, a model of 8.0 billion parameters, at temperature 0."
    )
    assert provenance.answers_of({**large, "random_weights": True}, 0.0).endswith(
        "Its weights are random, so the answers mean nothing."
    )
    quantised = {**SMALL, "shape": {"element_bytes": 2, "unlike": "quantised weights"}}
    assert provenance.answers_of(quantised, 0.0) == "Answers are from `smollm2_135m` at temperature 0."
    assert provenance.answers_of({}, 0.0) == ""

"""A run's examples: those of each cell, truncation of long prompts, and settings that contradict each other."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Compose
from tests.unit.quality.word_tokens import WordTokens
from wp1.config import checks
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.quality import examples
from wp1.quality.benchmarks import find, own, pg19
from wp1.quality.tasks import Row
from wp1.workload import prompts
from wp1.workload.prompts import PromptData

E4 = (
    "experiment=e4",
    "dataset.prompt_lens=[600,1200]",
    "dataset.tasks=[niah_single_1,multifieldqa_en,pg19_perplexity]",
)


def _asked(cfg: Any, tokens: WordTokens) -> examples.Examples:
    return examples.examples(cfg, plan(cfg)[0].cells, tokens, lambda _: None)


def test_every_cell_asks_every_task_at_its_length(config: Compose, tmp_path: Path) -> None:
    cfg, tokens = config(*E4), WordTokens()
    checks.check(cfg)
    asked = _asked(cfg, tokens)
    assert list(asked.cells) == ["600-conc4", "1200-conc4"]
    for name, of_cell in asked.cells.items():
        length = int(name.partition("-")[0])
        assert len(of_cell) == 6
        assert all(len(example.prompt) + example.task.max_tokens <= length for example in of_cell)
    assert sum(asked.source["examples"].values()) == 12
    examples.write(tmp_path / "examples.jsonl", asked.cells)
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert len({(line["cell"], line["example"]) for line in lines}) == 12
    assert _asked(config(*E4), WordTokens()).source == asked.source


def test_requests_are_the_same_in_every_arm_and_repeat(config: Compose) -> None:
    cfg, tokens = config(*E4, "scheduler=agg"), WordTokens()
    data = PromptData(1000, tokens.chat, examples=_asked(cfg, tokens))
    cell = plan(cfg)[0].cells[0]
    other = plan(config(*E4, "scheduler=disagg"))[0].cells[0]
    first, again = (list(prompts.measured(cfg, cell, repeat, data)) for repeat in (0, 1))
    disagg = list(prompts.measured(cfg, other, 0, data))
    for a, b, c in zip(first, again, disagg, strict=True):
        assert (a.prompt, a.seed, a.max_tokens, a.example) == (b.prompt, b.seed, b.max_tokens, b.example)
        assert (a.prompt, a.seed) == (c.prompt, c.seed)
    by_task = {request.example.split("/")[1]: request for request in first}
    assert by_task["niah_single_1"].max_tokens == 128
    assert by_task["pg19_perplexity"].nll_window == pg19.NLL_WINDOW
    assert by_task["multifieldqa_en"].nll_window is None
    warm = prompts.warmup_round(cfg, cell, 0, data, 1, 0)[0]
    assert len(warm.prompt) + warm.max_tokens <= 600


def test_a_long_prompt_loses_its_middle_and_keeps_both_ends(config: Compose, tmp_path: Path) -> None:
    words = " ".join(f"w{n}" for n in range(3000))
    row = {"_id": "1", "input": "What is last?", "context": words, "answers": ["w2999"]}
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps(row))
    cfg = config(
        "experiment=e4", "dataset=longbench", "dataset.tasks=[hotpotqa]", f"dataset.path={tmp_path}",
        "model.max_len=1000",
    )  # fmt: skip
    checks.check(cfg)
    tokens = WordTokens()
    asked = _asked(cfg, tokens)
    (example,) = asked.cells["longbench-conc4"]
    assert len(example.prompt) <= 1000 - 32
    assert len(example.prompt) >= 1000 - 32 - 10
    assert example.tokens_before > 5000
    text = tokens.decode(example.prompt.tolist())
    assert text.startswith("Answer the question based on the given passages.")
    assert text.endswith("Question: What is last?\nAnswer:")
    assert "w1500" not in text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experiment=e4", "model=llama31_8b_shape"], "answers of random weights mean nothing"),
        (["experiment=e4", "dataset.tasks=[hotpot]"], r"dataset\.tasks: there is no task hotpot: did you mean"),
        (["experiment=e4", "dataset.tasks=[hotpotqa]"], "hotpotqa is not built in.*dataset=longbench"),
        (["experiment=e4", "dataset.tasks=[vt,ruler/vt]"], "names a task twice"),
        (["experiment=e4", "dataset.prompt_lens=null"], r"dataset\.prompt_lens is empty"),
        (["experiment=e4", "dataset.prompt_lens=[9000]"], r"\[9000\] has 9000: .* within model\.max_len=8192"),
        (["experiment=e4", "dataset.depths=[120]"], "0 to 100"),
        (["experiment=e4", "dataset.languages=[en]"], r"dataset\.languages has no effect on built-in prompts"),
        (["experiment=e4", "dataset.limit=3"], r"set dataset\.samples_per_task"),
        (["experiment=e4", "dataset=longbench", "dataset.path=/nowhere"], r"dataset\.path=/nowhere does not exist"),
        (["experiment=e4", "dataset=longbench", "dataset.depths=[1]"], "is for built-in prompts only"),
        (["experiment=e4", "dataset=questions"], "workload=scored needs tasks"),
        (["dataset=longbench"], "choose workload=scored"),
        (["dataset.samples_per_task=3"], "is for scored tasks only"),
        (["experiment=e6", "arms.yarn.rope.type=yarn"], r"arms\.yarn\.rope\.factor is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(config: Compose, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checks.check(config(*overrides))


def test_a_scored_answer_s_length_is_not_to_be_set(config: Compose) -> None:
    cfg = config("experiment=e4", "workload.output_len=9")
    with pytest.raises(ConfigError, match=r"workload\.output_len=9 has no effect on a scored dataset"):
        checks.check_overrides(cfg, ["workload.output_len=9"])


def test_e6_doubles_up_to_the_model_s_length(config: Compose) -> None:
    cfg = config("experiment=e6", "model.max_len=16384")
    checks.check(cfg)
    assert list(cfg.dataset.prompt_lens) == [1024, 2048, 4096, 8192, 16384]
    assert [arm.name for arm in plan(cfg)] == ["yarn", "unscaled"]
    assert plan(cfg)[1].scheduler.rope.type == "none"


def test_a_row_is_of_the_length_group_that_its_set_states(tmp_path: Path) -> None:
    rows = [
        ("longbench/hotpotqa_e", {"length": 3999}),
        ("longbench/hotpotqa_e", {"length": 8000}),
        ("longbench/hotpotqa", {"length": 3999}),
        ("longbench_v2/longbench_v2", {"length": "short", "difficulty": "hard"}),
    ]
    known = {"context": "c", "question": "q", "answer": "A"} | {f"choice_{letter}": letter for letter in "ABCD"}
    natural = []
    for n, (name, fields) in enumerate(rows):
        task = find(name)
        row = own()[task.benchmark].row(task.name, known | fields, f"{n}")
        natural.append(examples.Example(task, row, array("i", [1]), 1))
    examples.write(tmp_path / "examples.jsonl", {"natural": natural})
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert [line["groups"] for line in lines] == [["0-4k"], ["8k+"], [], ["hard", "short"]]


def test_a_book_s_perplexity_is_of_its_beginning() -> None:
    tokens, book = WordTokens(), " ".join(f"w{n}" for n in range(500))
    example = examples.cut(find("pg19_perplexity"), Row("1", "pg19_perplexity", context=book), tokens, 101)
    assert list(example.prompt) == list(tokens.plain(book))[:100]
    assert example.tokens_before == len(tokens.plain(book))

"""Official scores: every parity file to 0.01, and by hand what those files do not show."""

import json
from pathlib import Path

import pytest

from tests.conftest import SHARED
from wp1.errors import ConfigError
from wp1.quality.tasks import Row, find
from wp1.quality.text_scores import edit_similarity
from wp1.score import score_file

PARITY = SHARED / "scorer_parity"
FILES = [("longbench", "{}.jsonl", "official_score"), ("infinitebench", "preds_{}.jsonl", "mean_pct")]


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"{PARITY} is absent")
@pytest.mark.parametrize(("benchmark", "file", "key"), FILES)
def test_every_parity_file_scores_as_its_official_scorer_says(benchmark: str, file: str, key: str) -> None:
    official = json.loads((PARITY / benchmark / "official_scores.json").read_text())
    found = {}
    for name, expected in official.items():
        score = score_file(find(f"{benchmark}/{name}"), PARITY / benchmark / file.format(name))
        assert score["n"] == expected["n"], name
        found[name] = score["mean"]
    # The official figures are rounded to two decimals.
    assert found == pytest.approx({name: expected[key] for name, expected in official.items()}, abs=0.0051)
    assert len(found) == len(official) >= 10


def _score(task: str, prediction: str, *answers: object, **fields: object) -> float:
    return find(task).score(prediction, Row("1", task, answers=list(answers), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "score"),
    [
        ("hotpotqa", "The Bob Dylan!", ["Bob Dylan"], 1.0),
        ("hotpotqa", "Bob", ["Robert", "Bob Dylan"], 2 / 3),  # the best reference counts
        ("triviaqa", "\n\nRum\nPassage: Gin", ["Rum"], 1.0),  # the first line only
        ("hotpotqa", "Rum\nGin", ["Rum"], 2 / 3),  # every line
        ("lcc", "# a comment\n`x`\ny = 1\nz", ["y = 1"], 1.0),
        ("lcc", "y = 1", ["y = 2"], 0.8),
        # A blank line after the comment is the line that counts; lm-eval goes on to the next.
        ("lcc", "# a comment\n\ny = 1", ["y = 1"], 0.0),
        ("passage_count", "5 or 6", ["5"], 0.5),
        ("passage_retrieval_en", "Paragraph 12 and 12", ["Paragraph 12"], 1.0),
        ("passage_retrieval_zh", "段落3", ["段落3"], 1.0),
        ("longbench_v2", "*The correct answer is (B)*", ["B"], 1.0),
        ("longbench_v2", "The correct answer is B", ["B"], 1.0),
        ("longbench_v2", "The correct answer is C, or rather: The correct answer is (B)", ["B"], 1.0),
        ("longbench_v2", "B", ["B"], 0.0),
        ("math_calc", "[3, 7, 8]", [3, 7, 9, 10], 0.5),
        ("math_find", "7.0 it is", [7], 1.0),
        ("longbook_sum_eng", "a b\nc d", ["a b\nc d"], 1.0),
        # Running and run differ, as no stemmer is used; lm-eval uses one.
        ("longbook_sum_eng", "running", ["run"], 0.0),
        ("longdialogue_qa_eng", "it is JIM.", ["JIM", "JIM GARRISON"], 1.0),
        ("longdialogue_qa_eng", "it is JIMMY", ["JIM"], 0.0),  # lm-eval takes a part of a word
        ("niah_multivalue", "12 34", ["12", "34", "56", "78"], 0.5),
        ("vt", "abc\x00DEF", ["ABC", "def"], 1.0),
        ("qa_1", "in Paris", ["London", "paris"], 1.0),  # any reference; lm-eval averages
        ("pg19_next_passage", "(C) because", ["C"], 1.0),
    ],
)
def test_a_score_by_hand(task: str, prediction: str, answers: list[object], score: float) -> None:
    assert _score(task, prediction, *answers) == pytest.approx(score)


def test_classes_that_are_part_of_the_right_one_do_not_count_against_it() -> None:
    classes = ["Sport", "Other sport", "Date", "Other date"]
    assert _score("trec", "Sport and Date", "Sport", all_classes=classes) == 0.5
    # "Other sport" names "sport" in another case only.
    assert _score("trec", "Other sport", "Other sport", all_classes=["sport", "Other sport"]) == 1.0
    # The official loop misses the second of two neighbours that it would leave out.
    assert _score("trec", "a b c", "a b c", all_classes=["a", "b", "a b c"]) == 0.5


def test_edit_similarity_is_rounded_to_hundredths() -> None:
    assert edit_similarity("abc", "abd") == 0.67
    assert edit_similarity("", "abc") == edit_similarity("abc", "") == 0.0


def test_all_tasks_are_found_by_name_and_near_ones_are_named() -> None:
    from wp1.quality import infinitebench, longbench, ruler

    assert len(longbench.names()) == 21 + 13
    assert len(infinitebench.names()) == 12
    assert len(ruler.names()) == 13
    for benchmark in (longbench, infinitebench, ruler):
        for name in benchmark.names():
            task = find(f"{benchmark.NAME}/{name}")
            assert task is find(name)
            assert task.max_tokens >= 1
    with pytest.raises(ConfigError, match=r"did you mean .*hotpotqa"):
        find("hotpotq")


def test_limits_and_chat_rules_are_the_published_ones() -> None:
    """A few known by heart: a change here means that lm-eval's files changed under us."""
    limits = {"narrativeqa": 128, "hotpotqa": 32, "gov_report": 512, "lcc": 64, "passkey": 6, "longbook_sum_eng": 1200}
    assert {name: find(name).max_tokens for name in limits} == limits
    ruler = {"niah_single_1": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
    assert {name: find(name).max_tokens for name in ruler} == ruler
    without = {name for name in find("hotpotqa") and _longbench_names() if not find(name).chat}
    assert without == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


def _longbench_names() -> list[str]:
    from wp1.quality import longbench

    return list(longbench.CATEGORY_OF)


def test_a_prompt_is_the_published_wording() -> None:
    row = Row("1", "lcc", context="def f():\n", question="", answers=["x"])
    assert find("lcc").prompt(row) == "Please complete the code given below. \ndef f():\nNext line of code:"
    row = Row("1", "longbook_choice_eng", context="BOOK", question="Who?", answers=["a"], choices=["a", "b", "c", "d"])
    assert find("longbook_choice_eng").prompt(row).endswith("anything else.\nA. a\nB. b\nC. c\nD. d")
    row = Row("1", "longbench_v2", context=" TEXT ", question="Why?", answers=["A"], choices=["a", "b", "c", "d"])
    asked = find("longbench_v2").prompt(row)
    assert "<text>\nTEXT\n</text>" in asked
    assert asked.endswith('\n\nFormat your response as follows: "The correct answer is (insert answer here)".')


def test_a_prediction_file_that_cannot_be_scored_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    cases = {
        '{"prediction": "a"}': ":1 has no answers",
        '{"answers": ["a"]}': ":1 has no prediction",
        "[1]": ":1 is not an object",
        '{"prediction": ': ":1 is not JSON",
        "": "has no predictions",
    }
    for text, said in cases.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            score_file(find("hotpotqa"), file)
    file.write_text('{"prediction": "a", "answers": ["a"]}\n')
    with pytest.raises(ConfigError, match=r":1 has no .all_classes"):
        score_file(find("trec"), file)


def test_groups_are_those_that_a_benchmark_reports(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [
        {"pred": "B", "answer": "B", "difficulty": "easy", "length": "short"},
        {"pred": None, "answer": "B", "difficulty": "hard", "length": "long"},
        {"response": "The correct answer is (B)", "pred": None, "answer": "B", "difficulty": "hard", "length": "long"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = score_file(find("longbench_v2"), file)
    assert found["n"] == 3
    assert {name: score["mean"] for name, score in found["groups"].items()} == {
        "easy": 100.0, "hard": 50.0, "short": 100.0, "long": 50.0,
    }  # fmt: skip
    file.write_text(json.dumps({"pred": "x", "answers": ["x"], "all_classes": None, "length": 4100}))
    assert list(score_file(find("hotpotqa_e"), file)["groups"]) == ["4-8k"]

"""Official scores: every parity file to within 0.01, and hand-made cases that those files do not cover."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED
from wp1 import score
from wp1.core.errors import ConfigError
from wp1.quality.benchmarks import find, own
from wp1.quality.predictions import scores_of
from wp1.quality.tasks import Row, Task
from wp1.quality.text_scores import edit_similarity
from wp1.score import _line

PARITY = SHARED / "scorer_parity"
FILES = [("longbench", "{}.jsonl", "official_score"), ("infinitebench", "preds_{}.jsonl", "mean_pct")]


def score_file(task: Task, path: Path) -> dict[str, Any]:
    """The score of one file, as the command prints it."""
    return scores_of(task, [path], own()).summary()


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
        # A blank line after the comment is the line that counts; lm-eval continues with the next one.
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
    counts = {benchmark.name: len(benchmark.names) for benchmark in own().values()}
    published = {"longbench": 21 + 13, "longbench_v2": 1, "infinitebench": 12, "ruler": 13, "pg19": 2}
    # Exactly; another benchmark in the folder does not matter here.
    assert {name: counts[name] for name in published} == published
    assert all(len(set(benchmark.names)) == counts[benchmark.name] > 0 for benchmark in own().values())
    for benchmark in own().values():
        for name in benchmark.names:
            task = find(f"{benchmark.name}/{name}")
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
    from wp1.quality.benchmarks import longbench

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
    assert _line("all", score_file(find("hotpotqa"), file)).endswith("n = 1  (1 answer: hardly a measurement)")
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


def _file(path: Path, *rows: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("task", "row", "mean"),
    [
        # The options say which letter is right, and the letter which option.
        ("longbook_choice_eng", {"prediction": "B", "answer": "Two"}, 100),
        ("longbook_choice_eng", {"prediction": "Two", "answer": "B"}, 100),
        ("longbook_choice_eng", {"prediction": "C", "answer": ["Two"]}, 0),
        ("longbook_choice_eng", {"prediction": "B", "ground_truth": ["Two", "B"], "options": None}, 100),
        ("longbook_choice_eng", {"prediction": "B", "answer": "B", "options": []}, 100),
        ("code_debug", {"prediction": "The answer is: B", "answer": "Two"}, 100),
        ("code_debug", {"prediction": "The answer is: A", "answer": "Two"}, 0),
        ("code_debug", {"prediction": "B. because", "answer": "B", "options": None}, 100),
        ("math_calc", {"prediction": "9" * 5000 + " 2", "answer": [["9" * 5000, 2, 3, 4]], "options": None}, 50),
        ("math_calc", {"prediction": "007, 8", "answer": [7, 8.0], "options": None}, 100),
        ("math_find", {"prediction": "1" * 5000, "answer": 1, "options": None}, 0),
        ("math_find", {"prediction": "12.50", "answer": 12.5, "options": None}, 100),
        ("math_find", {"prediction": "9007199254740993", "answer": 9007199254740992, "options": None}, 0),
        ("hotpotqa", {"prediction": None, "pred": "Paris", "answers": ["Paris"], "options": None}, 100),
    ],
)
def test_odd_predictions_and_answers_are_scored(tmp_path: Path, task: str, row: dict[str, object], mean: float) -> None:
    file = _file(tmp_path / "p.jsonl", {"options": ["One", "Two", "Three", "Four"]} | row)
    assert score_file(find(task), file)["mean"] == mean


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("hotpotqa", {"pred": "x", "answers": ["Paris", None]}, "null is among them"),
        ("hotpotqa", {"pred": "x", "answers": [{"text": "Paris"}]}, "an object is among them"),
        ("hotpotqa", {"pred": "x", "answers": {"text": ["Paris"]}}, "not texts or numbers"),
        ("hotpotqa", {"pred": "x", "answers": [["Paris"]]}, "a list is among them"),
        ("hotpotqa", {"pred": "x", "answers": True}, "not texts or numbers"),
        ("hotpotqa", {"pred": "x", "answers": [True]}, "true or false is among them"),
        ("hotpotqa", {"pred": None, "answers": ["a"]}, "has no prediction"),
        ("hotpotqa", {"pred": ["a"], "answers": ["a"]}, "has no prediction"),
        ("trec", {"pred": "a", "answers": ["a"], "all_classes": "a;b"}, '"all_classes" that is not a list of texts'),
        ("trec", {"pred": "a", "answers": ["a"], "all_classes": ["a", 3]}, '"all_classes" that is not a list of texts'),
        ("math_find", {"pred": "3", "answer": "three"}, "has the answer 'three', which is not a number"),
        ("code_run", {"pred": "3", "answer": "Paris"}, "has the answer 'Paris', which is not a whole number"),
        ("passage_retrieval_en", {"pred": "3", "answers": ["3"]}, "has the answer '3': a number after 'Paragraph '"),
        (
            "passage_retrieval_en_e",
            {"pred": "3", "answers": ["Paragraph x"]},
            "has the answer 'Paragraph x': a number",
        ),
        ("passage_retrieval_zh", {"pred": "3", "answers": ["Paragraph 3"]}, "has the answer 'Paragraph 3': a number"),
        ("math_calc", {"pred": "3", "answer": [[1, "x"]]}, "has the answer 'x', which is not a whole number"),
        ("math_calc", {"pred": "3", "answer": [[]]}, 'has no "answer"'),
        ("longbook_choice_eng", {"pred": "B", "answer": "Two"}, 'without its letter: give the letter, or "options"'),
        ("code_debug", {"pred": "B", "answer": "Five", "options": ["a", "b", "c", "d"]}, 'not one of its "options"'),
        ("code_debug", {"pred": "B", "answer": "a", "options": ["a", "b"]}, 'has 2 "options": four are needed'),
        ("vt", {"pred": "B", "outputs": ["A", ""]}, "has an empty answer"),
        ("longbench_v2", {"pred": "B", "answer": "Two"}, "one of A, B, C, D is needed"),
        ("longbench_v2", {"pred": 2, "answer": "B"}, "not a letter or null"),
        (
            "longbench_v2",
            {"pred": "B", "answer": "B", "length": 4100},
            '"length" that is not one of short, medium, long',
        ),
        ("hotpotqa_e", {"pred": "x", "answers": ["x"], "length": "long"}, 'a "length" that is not a whole number'),
        # Files of another benchmark or task, by what only those have.
        (
            "hotpotqa",
            {"prediction": "24", "ground_truth": [4]},
            "from infinitebench .*hotpotqa is a task of longbench",
        ),
        ("hotpotqa", {"pred": "a", "outputs": ["a"]}, 'is from ruler \\(it has "outputs"\\)'),
        ("passkey", {"pred": "a", "answers": ["a"], "all_classes": ["a"]}, "is from longbench"),
        ("passkey", {"response": "a", "answer": "A", "difficulty": "easy"}, "is from longbench_v2"),
        ("hotpotqa", {"pred": "a", "answers": ["a"], "all_classes": ["a", "b"]}, "is from a classification task"),
        ("hotpotqa", {"pred": "a", "answers": ["a"], "dataset": "qasper"}, "is from the task qasper"),
        ("passkey", {"prediction": "a", "ground_truth": ["Two", "B"]}, "is multiple choice"),
        ("pg19_perplexity", {"pred": "a", "answers": ["a"]}, "is scored by the log-likelihoods of a text"),
        ("hotpotqa", {"pred": "a\ud83d", "answers": ["a"]}, "lone surrogate"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_line(
    tmp_path: Path, task: str, row: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        score_file(find(task), _file(tmp_path / "p.jsonl", row))
    assert task == "pg19_perplexity" or "p.jsonl:1 " in str(caught.value)


def test_a_file_called_after_another_task_is_refused(tmp_path: Path) -> None:
    row = {"pred": "4", "answers": ["4"]}
    with pytest.raises(ConfigError, match="is named after the task code_run, not math_find"):
        score_file(find("math_find"), _file(tmp_path / "preds_code_run.jsonl", row))
    # LongBench-E's own files have LongBench's names.
    assert score_file(find("hotpotqa_e"), _file(tmp_path / "hotpotqa.jsonl", row))["mean"] == 100


def _command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["wp1.score", *words])
    code = 0
    try:
        score.main()
    except SystemExit as end:
        code = int(end.code or 0)
    found = capsys.readouterr()
    return code, found.out + found.err


def test_several_files_have_an_overall_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongBench's is over its categories: two tasks of one and one of another are not a third each."""
    right, wrong = {"pred": "Rum", "answers": ["Rum"]}, {"pred": "Gin", "answers": ["Rum"]}
    _file(tmp_path / "hotpotqa.jsonl", right)
    _file(tmp_path / "2wikimqa.jsonl", right, wrong)
    _file(tmp_path / "qasper.jsonl", wrong)
    code, said = _command(capsys, monkeypatch, "--json", "longbench", str(tmp_path))
    assert code == 0
    found = json.loads(said)
    assert {one["task"]: one["mean"] for one in found["tasks"]} == {
        "longbench/hotpotqa": 100, "longbench/2wikimqa": 50, "longbench/qasper": 0,
    }  # fmt: skip
    assert found["overall"]["longbench"]["mean"] == pytest.approx((75 + 0) / 2)
    files = [str(tmp_path / f"{name}.jsonl") for name in ("hotpotqa", "2wikimqa")]
    pairs = ("hotpotqa", files[0], "2wikimqa", files[1])
    for words in (files, pairs):
        code, said = _command(capsys, monkeypatch, *words)
        assert code == 0
        assert re.search(r"longbench, mean over the categories of 2 tasks\noverall +75\.00", said)
    # Two files of one task are one task.
    (tmp_path / "b").mkdir()
    more = _file(tmp_path / "b" / "x.jsonl", wrong)
    code, said = _command(capsys, monkeypatch, "hotpotqa", files[0], str(more))
    assert re.search(r"all +50\.00 .* n = 2", said)


def test_length_groups_have_means_over_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"pred": "Rum", "answers": ["Rum"], "length": n} for n in (3999, 4000, 7999, 8000)]
    one = _file(tmp_path / "hotpotqa.jsonl", *rows)
    other = _file(tmp_path / "qasper_e.jsonl", *[row | {"pred": "Gin"} for row in rows])
    for words in (("hotpotqa_e", str(one), "qasper_e", str(other)), ("longbench_e", str(tmp_path))):
        code, said = _command(capsys, monkeypatch, *words, "--json")
        assert code == 0
        overall = json.loads(said)["overall"]["longbench_e"]
        assert {name: (group["mean"], group["n"]) for name, group in overall["groups"].items()} == {
            "0-4k": (50, 2), "4-8k": (50, 4), "8k+": (50, 2),
        }  # fmt: skip
    code, said = _command(capsys, monkeypatch, "hotpotqa_e", str(tmp_path))
    assert re.search(r"^longbench/hotpotqa_e.*\nall +100.00", said)
    assert "qasper" not in said


def test_tasks_are_listed_and_a_wrong_command_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = _command(capsys, monkeypatch, "--list")
    assert code == 0
    assert len(said.splitlines()) == 34 + 1 + 12 + 13 + 2
    assert re.search(r"^infinitebench/longbook_choice_eng +accuracy +novel$", said, re.M)
    other = str(_file(tmp_path / "other.jsonl", {"pred": "Rum", "answers": ["Rum"]}))
    for words, message in (
        ((), "a prediction file is missing: see --help"),
        (("hotpotqa",), "a prediction file is missing after hotpotqa"),
        (("hotpotqa", "none.jsonl"), "none.jsonl does not exist"),
        (("hotpot", other), "there is no task hotpot: did you mean"),
        ((other,), "is not named after a task: name its task before it"),
        ((str(tmp_path),), "has no file named after a task"),
    ):
        code, said = _command(capsys, monkeypatch, *words)
        assert code == 2
        assert message in said
        assert len(said.splitlines()) == 1


def test_predictions_may_be_an_array(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(b'\xef\xbb\xbf[{"pred": "Rum", "answers": ["Rum"]},\r\n{"pred": "Gin", "answers": ["Rum"]}]')
    assert score_file(find("hotpotqa"), file)["mean"] == 50
    file.write_text('[{"pred": "Rum", "answers": ["Rum"]},\n{"pred": "Gin"}]')
    with pytest.raises(ConfigError, match=r"p\.json:2 has no answers"):
        score_file(find("hotpotqa"), file)

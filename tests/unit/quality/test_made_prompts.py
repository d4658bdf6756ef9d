"""RULER's and the built-in prompts: their length, their answers, their depth, and that they are the same everywhere."""

import hashlib
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SHARED
from tests.unit.quality.word_tokens import WordTokens
from wp1.errors import ConfigError
from wp1.quality import builtin, ruler
from wp1.quality.book import Passages
from wp1.quality.fill import Draft, Filler
from wp1.quality.ruler_prompts import Made, RulerPrompts
from wp1.quality.tasks import find

MADE = [name for name in ruler.names() if name not in ruler.FILES]
BUILTIN = [
    name for subset in ("longbench_subset", "infinitebench_subset", "pg19_subset") for name in builtin.SUBSETS[subset]
]


SHARED_TOKENS = WordTokens()


@cache
def _passages() -> Passages:
    return Passages(SHARED_TOKENS)


@pytest.fixture
def tokens() -> WordTokens:
    return SHARED_TOKENS


@pytest.fixture
def passages() -> Passages:
    return _passages()


def _fills(made: Made, length: int, task: str) -> bool:
    whole = len(made.ids) + find(task).max_tokens
    return math.ceil(0.98 * length) <= whole <= length


@pytest.mark.parametrize("length", [2048, 6000])
@pytest.mark.parametrize("task", MADE)
def test_a_prompt_fills_its_length_within_two_percent(
    task: str, length: int, tokens: WordTokens, passages: Passages
) -> None:
    prompts = RulerPrompts(tokens, length, passages)
    every = [prompts.make(task, 42, number) for number in range(2)]
    assert all(_fills(made, length, task) for made in every)
    assert len({made.row.context for made in every}) == 2
    for made in every:
        assert made.row.answers
        assert all(str(answer) in made.row.context for answer in made.row.answers)
        assert find(task).score(" ".join(made.row.answers), made.row) == 1.0
        assert find(task).score("I do not know", made.row) == 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(700, 6000), st.sampled_from(sorted(ruler.NEEDLES)), st.integers(0, 10**6))
def test_needles_fill_any_length(length: int, task: str, seed: int) -> None:
    made = RulerPrompts(SHARED_TOKENS, length, _passages()).make(task, seed, 0)
    assert _fills(made, length, task)


@pytest.mark.parametrize("depth", [0, 25, 50, 100])
@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_3"])
def test_a_needle_stands_at_the_depth_asked_for(
    task: str, depth: float, tokens: WordTokens, passages: Passages
) -> None:
    made = RulerPrompts(tokens, 6000, passages).make(task, 7, 1, depth)
    assert made.row.extra["depth"] == depth
    place = made.row.context.index(made.row.answers[0]) / len(made.row.context)
    assert place == pytest.approx(depth / 100, abs=0.045)
    assert _fills(made, 6000, task)


def test_prompts_are_known(tokens: WordTokens, passages: Passages) -> None:
    """A digest: a change here means that scores of before are of other prompts than scores of now."""
    prompts = RulerPrompts(tokens, 2048, passages)
    rows = [prompts.make(task, 42, 0).row for task in MADE]
    text = json.dumps([[row.context, row.answers, row.extra] for row in rows])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7aba451a435f3cd0"


def test_most_prompts_take_one_tokenization(tokens: WordTokens, passages: Passages) -> None:
    prompts = RulerPrompts(tokens, 8192, passages)
    prompts.make("niah_multikey_2", 1, 0)
    before = tokens.encoded
    for number in range(1, 11):
        prompts.make("niah_multikey_2", 1, number)
    assert tokens.encoded - before <= 15


def test_common_words_are_common(tokens: WordTokens, passages: Passages) -> None:
    made = RulerPrompts(tokens, 8192, passages).make("cwe", 3, 0)
    listed = made.row.context.rpartition("most often.\n")[2].partition("\nQuestion")[0]
    counts = Counter(word.rsplit(" ", 1)[0] for word in listed.split(" ") if not word.endswith("."))
    assert {word for word, _ in counts.most_common(10)} == set(made.row.answers)


def test_frequent_words_are_the_most_frequent(tokens: WordTokens, passages: Passages) -> None:
    made = RulerPrompts(tokens, 8192, passages).make("fwe", 3, 0)
    counts = Counter(word for word in made.row.context.split() if len(word) == 6 and word.islower())
    assert [word for word, _ in counts.most_common(3)] == made.row.answers


def test_what_does_not_fit_says_how_much_it_needs(tokens: WordTokens, passages: Passages) -> None:
    with pytest.raises(ConfigError, match=r"cwe at 300 does not fit .*its shortest form needs \d+"):
        RulerPrompts(tokens, 300, passages).make("cwe", 1, 0)
    with pytest.raises(ConfigError, match=r"qa_1 needs its questions: set dataset\.squad=FILE"):
        RulerPrompts(tokens, 2048, passages).make("qa_1", 1, 0)


def test_documents_come_from_the_official_files(tmp_path: Path, tokens: WordTokens, passages: Passages) -> None:
    squad = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": f"Document number {a}-{p} tells of a town called Place{a}x{p}. "
                        + "It is old. " * 30,
                        "qas": [
                            {"question": "Which town?", "answers": [{"text": f"Place{a}x{p}"}], "is_impossible": False},
                            {"question": "None?", "answers": [], "is_impossible": True},
                        ],
                    }
                    for p in range(3)
                ]
            }
            for a in range(20)
        ]
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    hotpot = [
        {
            "question": f"Which is {n}?",
            "answer": f"Answer{n}",
            "context": [[f"Title {n}", [f"It is Answer{n}. ", "So it is. " * 20]], [f"Other {n}", ["No. " * 20]]],
        }
        for n in range(60)
    ]
    (tmp_path / "hotpot.json").write_text(json.dumps(hotpot))
    prompts = RulerPrompts(tokens, 4096, passages, {"qa_1": tmp_path / "squad.json", "qa_2": tmp_path / "hotpot.json"})
    for task in ("qa_1", "qa_2"):
        made = prompts.make(task, 42, 5)
        assert made.row.answers[0] in made.row.context
        assert _fills(made, 4096, task)
        assert made.row.context.count("Document ") > 3
    (tmp_path / "hotpot.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"dataset\.squad=.*hotpot\.json is no such set"):
        RulerPrompts(tokens, 4096, passages, {"qa_1": tmp_path / "hotpot.json"}).make("qa_1", 1, 0)


@pytest.mark.parametrize("length", [1024, 3000])
@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_prompt_fills_its_length_and_can_be_answered(
    name: str, length: int, tokens: WordTokens, passages: Passages
) -> None:
    prompts = builtin.BuiltinPrompts(tokens, length, passages)
    every = [prompts.make(name, 42, number) for number in range(4)]
    assert all(_fills(made, length, name) for made in every)
    assert len({tuple(made.ids) for made in every}) == 4
    task = find(name)
    if task.metric == "perplexity":
        assert {len(made.ids) for made in every} == {length - 1}
        return
    for made in every:
        answer = made.row.answers[-1] if task.name == "longbook_choice_eng" else made.row.answers[0]
        assert task.score(str(answer), made.row) == 1.0
    again = builtin.BuiltinPrompts(tokens, length, passages).make(name, 42, 2)
    assert again.row == every[2].row


def test_every_question_is_answered_by_its_verse() -> None:
    from wp1.workload.book import verses

    text = verses()
    assert len(builtin.questions()) >= 40
    for question in builtin.questions():
        assert any(answer.lower() in text[question.index].text.lower() for answer in question.answers), question
    kinds = Counter(question.kind for question in builtin.questions())
    assert min(kinds.values()) >= 4


def test_passages_have_the_sizes_that_they_say(passages: Passages, tokens: WordTokens) -> None:
    end = len(passages.verses)
    for start, count in ((0, 1), (5, 20), (end - 3, 10)):
        texts = [f" {text}" for text in passages.texts(start, count)]
        assert passages.size(start, count) == sum(tokens.counts(texts))
        assert passages.count_within(start, passages.size(start, count)) == count
        assert passages.count_within(start, passages.size(start, count) - 1) == count - 1
    assert passages.size(0, end) == passages.tokens
    assert passages.count_within(7, 2 * passages.tokens + passages.size(7, 4)) == 2 * end + 4


@settings(max_examples=60, deadline=None)
@given(st.integers(50, 3000), st.integers(1, 300), st.integers(-30, 30), st.integers(0, 40))
def test_a_filler_never_exceeds_its_length(length: int, unit: int, wrong: int, reserve: int) -> None:
    """However wrong the estimate of a unit is, as long as more units are more tokens by it."""
    estimate = max(1, unit + wrong)
    draft = Draft(lambda units, noise: "u" * (unit * units) + "p" * 5 * noise, lambda units: estimate * units)
    filler = Filler(lambda text: [0] * (10 + len(text)), length, reserve)
    try:
        ids = filler.fit(draft, "it")
    except ConfigError:
        assert 10 + unit + reserve > length
        return
    assert len(ids) + reserve <= length
    # To the next sentence of padding.
    assert (
        len(ids) > filler.bounds[0] - 6 or len(ids) + 5 * max(1, (filler.bounds[0] - len(ids)) // 8) > filler.bounds[1]
    )


OFFICIAL = SHARED / "ruler"


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"{OFFICIAL} is absent")
@pytest.mark.parametrize("task", ["niah_single_1", "vt", "cwe"])
def test_wording_is_that_of_ruler_s_own_generator(task: str, tokens: WordTokens, passages: Passages) -> None:
    """Words beside the random ones, from the first line to the answer's opening, at the same length."""
    line = (OFFICIAL / task / "validation.jsonl").read_text().splitlines()[0]
    official = json.loads(line)
    made = RulerPrompts(tokens, 4096, passages).make(task, 1, 0)
    ours = (made.row.context.splitlines()[0], made.row.context.splitlines()[-1], made.row.extra["answer_prefix"])
    theirs = (official["input"].splitlines()[0], official["input"].splitlines()[-1], official["answer_prefix"].strip())
    for a, b in zip(ours, theirs, strict=True):
        assert _frame(a) == _frame(b)


def _frame(text: str) -> list[str]:
    """The words of a sentence that are not drawn."""
    kept = [word.strip(".,?:") for word in text.split()]
    return [word for word in kept if word.isalpha() and not word.isupper()][:12]

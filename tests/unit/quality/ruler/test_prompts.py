"""RULER's and the built-in prompts: their length, their answers, their depth, and that they are the same everywhere."""

import hashlib
import json
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SHARED
from tests.unit.quality.word_tokens import WordTokens
from wp1.core.errors import ConfigError
from wp1.quality import builtin
from wp1.quality.benchmarks import find, own, subsets
from wp1.quality.book import Passages
from wp1.quality.fit_to_length import PADDING, Draft, Filler
from wp1.quality.ruler.needles import DEPTHS, NEEDLES
from wp1.quality.ruler.prompts import RulerPrompts
from wp1.quality.ruler.questions import qa_set
from wp1.quality.tasks import Made, Make, Making

MADE = [name.partition("/")[2] for name in subsets(own())["ruler_subset"]]
BUILTIN = [
    name for subset in ("longbench_subset", "infinitebench_subset", "pg19_subset") for name in subsets(own())[subset]
]


NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

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
    # A line of two UUIDs has about 80 tokens, more than 2 % of the shorter prompts.
    least = length - 90 if task == "niah_multikey_3" else math.ceil(0.98 * length)
    assert all(least <= len(made.ids) + find(task).max_tokens <= length for made in every)
    assert len({made.row.context for made in every}) == 2
    for made in every:
        assert made.row.answers
        assert all(str(answer) in made.row.context for answer in made.row.answers)
        assert find(task).score(" ".join(made.row.answers), made.row) == 1.0
        assert find(task).score("I do not know", made.row) == 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(700, 6000), st.sampled_from(sorted([*NEEDLES, "vt"])), st.integers(0, 10**6))
def test_lines_fill_any_length(length: int, task: str, seed: int) -> None:
    """To 2 %, or to less than another line; the longest here is a needle of two UUIDs, of about 80 tokens."""
    length += 500 * (task == "vt")
    made = RulerPrompts(SHARED_TOKENS, length, _passages()).make(task, seed, 0)
    whole = len(made.ids) + find(task).max_tokens
    longest = max(SHARED_TOKENS.counts([f"{line}\n" for line in made.row.context.split("\n")[3:-3]]), default=0)
    if task in ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"):
        longest = 0  # cut to the word
    assert min(math.ceil(0.98 * length), length - longest - 4) <= whole <= length


@pytest.mark.parametrize("length", [1024, 2048, 4096])
@pytest.mark.parametrize("task", [*MADE, "qa_1", "qa_2"])
def test_nothing_is_added_that_ruler_has_not(
    task: str, length: int, tokens: WordTokens, passages: Passages, tmp_path: Path
) -> None:
    """Sentences of noise stand in vt's and niah_single_1's lines alone, and never cut or by themselves."""
    prompts = RulerPrompts(tokens, length, passages, _qa_files(tmp_path))
    for number in range(2):
        context = prompts.make(task, 42, number).row.context
        if task in ("vt", "niah_single_1"):
            noisy = [line for line in context.split("\n") if "grass is green" in line or "There and back" in line]
            assert set(noisy) == {NOISE}
        else:
            assert not any(sentence in context for sentence in PADDING)


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
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "c10785b189b4729e"


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


def _qa_files(tmp_path: Path) -> dict[str, Path]:
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
    return {"qa_1": tmp_path / "squad.json", "qa_2": tmp_path / "hotpot.json"}


def test_documents_come_from_the_official_files(tmp_path: Path, tokens: WordTokens, passages: Passages) -> None:
    prompts = RulerPrompts(tokens, 4096, passages, _qa_files(tmp_path))
    for task in ("qa_1", "qa_2"):
        made = prompts.make(task, 42, 5)
        assert made.row.answers[0] in made.row.context
        # Documents are of 100 to 170 tokens here.
        assert 4096 - 180 <= len(made.ids) + find(task).max_tokens <= 4096
        assert made.row.context.count("Document ") > 3
    # The same of JSONL: HotpotQA's questions, SQuAD's articles.
    files = {}
    for task, name, key in (("qa_1", "squad.json", "data"), ("qa_2", "hotpot.json", None)):
        given = json.loads((tmp_path / name).read_text())
        files[task] = tmp_path / f"{name}l"
        files[task].write_text("".join(json.dumps(row) + "\n" for row in (given[key] if key else given)))
        again = RulerPrompts(tokens, 4096, passages, files).make(task, 42, 5)
        assert again.row == RulerPrompts(tokens, 4096, passages, _qa_files(tmp_path)).make(task, 42, 5).row
    files["qa_2"].write_text('{"question": "a\\ud83d"}\n')
    with pytest.raises(ConfigError, match=r"dataset\.hotpot: .*hotpot\.jsonl:1 has half a character"):
        qa_set.__wrapped__("qa_2", files["qa_2"])
    (tmp_path / "hotpot.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"dataset\.squad=.*hotpot\.json is no such set"):
        RulerPrompts(tokens, 4096, passages, {"qa_1": tmp_path / "hotpot.json"}).make("qa_1", 1, 0)


@pytest.mark.parametrize("length", [1024, 3000])
@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_prompt_fills_its_length_and_can_be_answered(
    name: str, length: int, tokens: WordTokens, passages: Passages
) -> None:
    benchmark, _, short = name.partition("/")
    every = [made for number in range(4) for made in _maker(benchmark, tokens, length, passages)(short, 42, number)]
    assert all(_fills(made, length, name) for made in every)
    assert len({tuple(made.ids) for made in every}) == 4
    task = find(name)
    if task.metric == "perplexity":
        assert {len(made.ids) for made in every} == {length - 1}
        return
    for made in every:
        answer = made.row.answers[-1] if task.name == "longbook_choice_eng" else made.row.answers[0]
        assert task.score(str(answer), made.row) == 1.0
    (again,) = _maker(benchmark, tokens, length, passages)(short, 42, 2)
    assert again.row == every[2].row


def _maker(benchmark: str, tokens: WordTokens, length: int, passages: Passages) -> Make:
    built_in = own()[benchmark].built_in
    assert built_in is not None
    return built_in.maker(Making(tokens, length, passages, None))


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
def test_layout_is_that_of_ruler_s_own_generator(task: str, tokens: WordTokens, passages: Passages) -> None:
    """Line by line, with what is drawn left out, at one length: which lines there are, how it begins and ends."""
    rows = [json.loads(line) for line in (OFFICIAL / task / "validation.jsonl").read_text().splitlines()]
    theirs = {tuple(_shape(row["input"])) for row in rows}
    prompts = RulerPrompts(tokens, 4096, passages)
    for number in range(3):
        row = prompts.make(task, 1, number).row
        ours, of_theirs = _shape(row.context), _shape(rows[0]["input"])
        assert set(ours) == set(of_theirs)
        assert (ours[: 2 if task == "vt" else 1], ours[-1]) == (of_theirs[: 2 if task == "vt" else 1], of_theirs[-1])
        if task == "cwe":
            assert tuple(_shape(row.context)) in theirs
        official = rows[number]["answer_prefix"].strip()
        assert _drawn_out(row.extra["answer_prefix"]) == _drawn_out(official)
        assert len(row.answers) == len(rows[0]["outputs"])


def _drawn_out(text: str) -> str:
    """A line without what is drawn: numbers, variables, keys."""
    text = re.sub(r"\b[A-Z]{3}\b(?<!VAR)|\b[A-Z]{5}\b", "X", re.sub(r"\d+", "0", text))
    text = re.sub(r"for [^ ]+(?: [^ ]+)*? (?=is:|mentioned)", "for KEY ", text)
    return re.sub(r"\b0\. [^0]+?(?= 0\.|$)", "0. word", text)


def _shape(text: str) -> list[str]:
    """The lines of a prompt without what is drawn, and a list of words without its length."""
    return [re.sub(r"(0\. word ?)+", "LIST", _drawn_out(line)) for line in text.split("\n")]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"{OFFICIAL} is absent")
def test_vt_has_ruler_s_example_of_fourteen_lines() -> None:
    """By the tokenizer that made the official rows; another has as many lines as fit 500 of its tokens."""
    from wp1.model import models
    from wp1.workload.tokens import ModelTokens

    tokens = ModelTokens(models._bundled(lambda _: None))
    rows = [json.loads(line) for line in (OFFICIAL / "vt" / "validation.jsonl").read_text().splitlines()]
    prompts = RulerPrompts(tokens, 4096, Passages(tokens))
    found = [prompts.make("vt", seed, 0) for seed in range(2)]
    for text in [rows[0]["input"], *(made.row.context for made in found)]:
        example, _, asked = text.partition("\n\nMemorize")
        assert example.count(NOISE) == 14
        assert example.count("VAR ") == asked.count("VAR ") == 9
        assert re.search(r"they are:  [A-Z]{3}( [A-Z]{3}){4}$", example)
        lines = [line for line in text.split("\n") if line.startswith("VAR ")]
        assert [line.endswith(" ") for line in lines] == [False, True, True, True, True] * 2
    again = prompts.make("vt", 0, 1).row.context.split("\n")
    first = found[0].row.context.split("\n")
    end = first.index("", 3)
    # The example of all prompts of a seed has its assignments in the same places, and other names.
    assert [_drawn_out(line) for line in first[:end]] == [_drawn_out(line) for line in again[:end]]
    assert first[:end] != again[:end]


def test_needles_stand_before_any_line_but_never_after_the_last(tokens: WordTokens, passages: Passages) -> None:
    """Among lines all places are alike; in essays the forty depths of niah.py."""
    prompts = RulerPrompts(tokens, 1024, passages)
    places, of = [], 0
    for number in range(150):
        lines = prompts.make("niah_single_1", 5, number).row.context.split("\n")[1:-1]
        places.append(next(n for n, line in enumerate(lines) if line.startswith("One of")))
        of = len(lines)
    assert set(places) <= set(range(of - 1))
    assert len(set(places)) > 0.85 * (of - 1)
    for number in range(20):
        [depth] = prompts.make("niah_single_2", 5, number).row.extra["depths"]
        assert min(abs(depth - place) for place in DEPTHS) < 7


def test_frequent_words_have_ruler_s_vocabulary(tokens: WordTokens, passages: Passages) -> None:
    """(length - 50) / 50 words by Zipf's law, the first of them the dots; those due less than once are absent."""
    for length in (1024, 4096):
        context = RulerPrompts(tokens, length, passages).make("fwe", 3, 0).row.context
        listed = context.partition("coded words. ")[2].partition("\nQuestion")[0]
        counts = [count for _, count in Counter(listed.split()).most_common()]
        size = (length - 50) // 50
        assert len(counts) <= size
        assert Counter(listed.split()).most_common(1)[0][0] == "..."
        total = next(n for n in range(sum(counts), 3 * sum(counts)) if int(n * 6 / math.pi**2) == counts[0])
        near = [[int(n * 6 / math.pi**2 / k**2) for k in range(1, size + 1)] for n in range(total, total + 3)]
        assert counts in [[count for count in of if count] for of in near]


def test_common_words_beyond_those_there_are_are_refused(
    tokens: WordTokens, passages: Passages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wp1.quality.ruler.words._cwe_words", lambda: [f"word{chr(97 + n)}" for n in range(26)] * 2)
    with pytest.raises(ConfigError, match="cwe at 8192 needs more words than the 52 there are"):
        RulerPrompts(tokens, 8192, passages).make("cwe", 1, 0)

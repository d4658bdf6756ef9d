"""Chats, batches and prompts as datasets: what each form asks, how long answers are to be, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Compose
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.runner import prompt_data
from wp1.workload import chats, dataset, prompts
from wp1.workload.chats import Asked
from wp1.workload.prompts import Material
from wp1.workload.row_files import BadRowError

SYSTEM, ASKED, ANSWER, MORE = ("system", "Be brief."), ("user", "Why?"), ("assistant", "So."), ("user", "And?")


def _sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[role], "value": text} for role, text in turns]


def _openai(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"prompt": "Why?"}, Asked((ASKED,))),
        ({"prompt": "Why?", "output_len": 7}, Asked((ASKED,), None, 7)),
        # ShareGPT: up to the first answer, whatever follows.
        ({"conversations": _sharegpt(ASKED)}, Asked((ASKED,))),
        ({"conversations": _sharegpt(SYSTEM, ASKED, ANSWER, MORE)}, Asked((SYSTEM, ASKED), "So.")),
        ({"conversations": _sharegpt(ASKED, MORE, ANSWER)}, Asked((ASKED, MORE), "So.")),
        # A piece of a longer conversation begins with an answer to what is not there.
        ({"conversations": _sharegpt(ANSWER, ASKED, ANSWER)}, Asked((ASKED,), "So.")),
        ({"conversation": _openai(ASKED, ANSWER, MORE, ANSWER)}, Asked((ASKED,), "So.")),
        ({"conversations": [{"from": "user", "value": "Why?"}, {"from": "chatgpt", "value": " "}]}, Asked((ASKED,))),
        # A request with its history, or all before the answer that it ends with.
        ({"messages": _openai(SYSTEM, ASKED, ANSWER, MORE)}, Asked((SYSTEM, ASKED, ANSWER, MORE))),
        ({"messages": _openai(ASKED, ANSWER, MORE, ANSWER)}, Asked((ASKED, ANSWER, MORE), "So.")),
        ({"messages": [{"role": "developer", "content": "Be brief."}, *_openai(ASKED)]}, Asked((SYSTEM, ASKED))),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]}
                ]
            },
            Asked((ASKED,)),
        ),
        ({"messages": _openai(ASKED), "max_tokens": 5}, Asked((ASKED,), None, 5)),
        # OpenAI's batch files.
        ({"custom_id": "r", "body": {"messages": _openai(ASKED), "max_tokens": 5}}, Asked((ASKED,), None, 5)),
        ({"body": {"messages": _openai(ASKED), "max_completion_tokens": 6}}, Asked((ASKED,), None, 6)),
        ({"body": {"prompt": "Why?", "max_tokens": None}}, Asked((ASKED,))),
        ({"text": "Why?"}, None),
        ({}, None),
    ],
)
def test_what_a_row_asks(row: dict[str, Any], asked: Asked | None) -> None:
    assert chats.asked_of(row) == asked


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": []}, "nothing is asked"),
        ({"conversations": _sharegpt(ANSWER)}, "nothing is asked"),
        ({"messages": []}, "nothing is asked"),
        ({"messages": _openai(SYSTEM, ANSWER)}, "nothing is asked"),
        ({"messages": ["Why?"]}, 'has "messages" whose turn 1 is not an object'),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "turn 1 is of 'tool': roles are system, user"),
        ({"conversations": [{"value": "x"}]}, "turn 1 is without one"),
        ({"messages": [{"role": "user", "content": None}]}, 'has in "messages" turn 1 no text'),
        ({"messages": [{"role": "user", "content": " "}]}, "an empty question"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type image_url"),
        ({"prompt": " "}, 'an empty "prompt"'),
        ({"prompt": "x", "max_tokens": 0}, 'has "max_tokens" 0: a whole number of tokens'),
        ({"prompt": "x", "output_len": 1.5}, 'has "output_len" 1.5'),
        ({"prompt": "x", "output_len": "5"}, """has "output_len" '5': a whole number"""),
        ({"prompt": "x", "output_len": True}, 'has "output_len" True'),
        ({"prompt": "x", "output_len": 10**20}, 'has "output_len" 1000'),
        ({"body": {"input": "x"}}, 'a "body" with neither "messages" nor "prompt"; it has the fields input'),
        ({"prompt": ["x", "y"]}, 'has "prompt" that is no text'),
        ({"messages": "x"}, 'has "messages" that is no list of turns'),
        ({"conversations": "x"}, 'has "conversations" that is no list of turns'),
    ],
)
def test_a_row_that_asks_nothing_is_bad(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRowError) as caught:
        chats.asked_of(row)
    assert said in str(caught.value)


def _file(path: Path, rows: list[Any], array: bool = False) -> Path:
    file = path / ("rows.json" if array else "rows.jsonl")
    file.write_text(json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("array", [False, True])
def test_rows_of_every_form_in_one_file(config: Compose, tmp_path: Path, array: bool) -> None:
    rows = [
        {"question": "Why?", "context": "Because.", "max_tokens": 3},
        {"id": "s", "conversations": _sharegpt(ASKED, ANSWER)},
        {"custom_id": "b", "body": {"messages": _openai(SYSTEM, ASKED), "max_tokens": 5}},
        {"prompt": "How?"},
    ]
    cfg = config("dataset=file", f"dataset.path={_file(tmp_path, rows, array)}")
    found = dataset.read(cfg.dataset).rows
    assert [(row.question, row.answer, row.output_len) for row in found] == [
        ("Why?", None, 3), ("Why?", "So.", None), ("Why?", None, 5), ("How?", None, None),
    ]  # fmt: skip
    assert [row.id for row in found[1:3]] == ["s", "b"]
    assert found[2].prompt == "Be brief.\n\nWhy?"


def test_a_row_that_is_not_understood_names_the_fields_that_were_found(config: Compose, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"prompt": "x"}, {"instruction": "x", "output": "y"}])
    with pytest.raises(ConfigError) as caught:
        dataset.read(config("dataset=file", f"dataset.path={file}").dataset)
    assert f'{file}:2 has no "question"' in str(caught.value)
    assert "it has the fields instruction, output: " in str(caught.value)
    assert '"conversations" (ShareGPT)' in str(caught.value)


def test_bad_rows_are_left_out_and_counted_where_that_is_asked_for(config: Compose, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "\\ud83d"}\n{"x": 1}\n{"prompt": NaN}\n{"id": "q1", "prompt": "b"}\n')
    words = ("dataset=file", f"dataset.path={file}")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2 has half a character .*dataset\.on_bad_row=skip"):
        dataset.read(config(*words).dataset)
    found = dataset.read(config(*words, "dataset.on_bad_row=skip").dataset)
    assert [row.question for row in found.rows] == ["a"]
    assert [bad.partition(" ")[0][-2:] for bad in found.bad] == [":2", ":3", ":4", ":5"]
    file.write_text('{"x": 1}\n')
    with pytest.raises(ConfigError, match=r"has no questions that can be asked \(1 bad rows"):
        dataset.read(config(*words, "dataset.on_bad_row=skip").dataset)


def test_what_stands_after_the_limit_is_not_looked_at(config: Compose, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"prompt": "a"}, {"prompt": "b"}, {"x": 1}])
    cfg = config("dataset=file", f"dataset.path={file}", "dataset.limit=2")
    assert len(dataset.read(cfg.dataset).rows) == 2


class _Words:
    """A tokenizer of words, with a chat template that knows no system messages."""

    def chat(self, text: str) -> list[int]:
        return [1, *range(len(text.split()))]

    def messages(self, messages: chats.Messages) -> list[int]:
        if any(role == "system" for role, _ in messages):
            raise ValueError("System role not supported")
        return [number for number, (_, text) in enumerate(messages) for _ in text.split()]

    def counts(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def test_answers_are_as_long_as_the_row_says_up_to_output_len(config: Compose, tmp_path: Path) -> None:
    rows = [
        {"conversations": _sharegpt(ASKED, ("assistant", "one two three four five"))},
        {"prompt": "a", "output_len": 9},
        {"prompt": "b"},
        {"prompt": "c", "output_len": 2},
    ]
    words = ("dataset=file", f"dataset.path={_file(tmp_path, rows)}", "workload.output_len=6")
    cfg = config(*words)
    given = prompt_data.read(cfg, lambda _: None)
    assert given.questions is not None
    made = Material(1000, prompts.as_token_ids, prompt_data._tokenized(given.questions.rows, _Words()))  # type: ignore[arg-type]
    requests = prompts.measured(cfg, plan(cfg)[0].cells[0], 0, made)
    assert [request.max_tokens for request in requests] == [5, 6, 6, 2]
    inputs, [said] = prompt_data.inputs(cfg, given, made)
    assert inputs["questions"]["output_lengths_by_row"] == 3
    assert inputs["questions"]["cut_to_output_len"] == 1
    assert said == (
        "dataset rows.jsonl: 4 questions; 3 say how long their answer is to be, 1 of them more than "
        "workload.output_len=6, which is taken"
    )
    # A distribution that is asked for goes before the rows' own lengths.
    drawn = config(*words, "workload.output_distribution=uniform", "workload.output_spread=0.5")
    requests = prompts.measured(drawn, plan(drawn)[0].cells[0], 0, made)
    assert {request.max_tokens for request in requests} <= set(range(3, 10))
    assert [request.max_tokens for request in requests] != [5, 6, 6, 2]


def test_a_conversation_that_the_template_refuses_is_named(config: Compose, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"prompt": "a"}, {"messages": _openai(SYSTEM, ASKED)}])
    rows = dataset.read(config("dataset=file", f"dataset.path={file}").dataset).rows
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2 cannot be asked by the model's chat template \(System role"):
        prompt_data._tokenized(rows, _Words())  # type: ignore[arg-type]
    [(_, ids)] = prompt_data._tokenized(rows[:1], _Words())  # type: ignore[arg-type]
    assert np.array_equal(ids, [0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset=file", "dataset.path={}"), r"rows\.jsonl:1 has half a character"),
        (("workload=trace", "workload.trace_path={}", "experiment.same_tokens=false"), r"rows\.jsonl:1 has half a"),
        (
            ("experiment=e4", "dataset=longbench", "dataset.tasks=[hotpotqa]", "dataset.path={}"),
            r"rows\.jsonl:1 has half a character",
        ),
        (("experiment=e4", "dataset.tasks=[qa_2]", "dataset.hotpot={}"), r"dataset\.hotpot: .*rows\.jsonl:1 has half"),
    ],
)
def test_data_is_refused_before_the_model_is_prepared(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    from wp1.model import models
    from wp1.runner.prepare import prepare

    def prepared(*_: Any) -> None:
        raise AssertionError("the model was prepared first")

    monkeypatch.setattr(models, "prepare", prepared)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "\\ud83d", "question": "Why?", "time_s": 0, "prompt_len": 3, "output_len": 2}\n')
    with pytest.raises(ConfigError, match=said):
        prepare(config(*(word.format(file) for word in words)), tmp_path / "engine.log", lambda _: None)

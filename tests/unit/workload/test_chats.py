"""Chats, batches and prompts as datasets: what each form asks, the answer lengths, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Compose
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.workload import chats, dataset, prompts
from wp1.workload.chats import Asked
from wp1.workload.prompts import PromptData
from wp1.workload.question_prompts import QuestionPrompts, tokenized
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
        # ShareGPT: up to the first answer.
        ({"conversations": _sharegpt(ASKED)}, Asked((ASKED,))),
        ({"conversations": _sharegpt(SYSTEM, ASKED, ANSWER, MORE)}, Asked((SYSTEM, ASKED), "So.")),
        ({"conversations": _sharegpt(ASKED, MORE, ANSWER)}, Asked((ASKED, MORE), "So.")),
        # A piece of a longer conversation may begin with an answer.
        ({"conversations": _sharegpt(ANSWER, ASKED, ANSWER)}, Asked((ASKED,), "So.")),
        ({"conversation": _openai(ASKED, ANSWER, MORE, ANSWER)}, Asked((ASKED,), "So.")),
        ({"conversations": [{"from": "user", "value": "Why?"}, {"from": "chatgpt", "value": " "}]}, Asked((ASKED,))),
        # A request with its history, without a last message that is the answer.
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
    ("row", "message"),
    [
        ({"conversations": []}, "without a question"),
        ({"conversations": _sharegpt(ANSWER)}, "without a question"),
        ({"messages": []}, "without a question"),
        ({"messages": _openai(SYSTEM, ANSWER)}, "without a question"),
        ({"messages": ["Why?"]}, 'has "messages" whose turn 1 is not an object'),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "turn 1 has role 'tool': use system, user"),
        ({"conversations": [{"value": "x"}]}, "turn 1 has no role"),
        ({"messages": [{"role": "user", "content": None}]}, 'has no text in "messages" turn 1'),
        ({"messages": [{"role": "user", "content": " "}]}, "an empty question"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type image_url"),
        ({"prompt": " "}, 'an empty "prompt"'),
        ({"prompt": "x", "max_tokens": 0}, 'has "max_tokens" 0: it must be a whole number of tokens'),
        ({"prompt": "x", "output_len": 1.5}, 'has "output_len" 1.5'),
        ({"prompt": "x", "output_len": "5"}, """has "output_len" '5': it must be a whole number"""),
        ({"prompt": "x", "output_len": True}, 'has "output_len" True'),
        ({"prompt": "x", "output_len": 10**20}, 'has "output_len" 1000'),
        ({"body": {"input": "x"}}, 'a "body" with neither "messages" nor "prompt"; its fields are input'),
        ({"prompt": ["x", "y"]}, 'has "prompt" that is not a text'),
        ({"messages": "x"}, 'has "messages" that is not a list of turns'),
        ({"conversations": "x"}, 'has "conversations" that is not a list of turns'),
    ],
)
def test_a_malformed_row_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError) as caught:
        chats.asked_of(row)
    assert message in str(caught.value)


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
    rows_read = dataset.read(cfg.dataset).rows
    assert [(row.question, row.answer, row.output_len) for row in rows_read] == [
        ("Why?", None, 3), ("Why?", "So.", None), ("Why?", None, 5), ("How?", None, None),
    ]  # fmt: skip
    assert [row.id for row in rows_read[1:3]] == ["s", "b"]
    assert rows_read[2].prompt == "Be brief.\n\nWhy?"


def test_a_row_of_unknown_form_is_refused_with_its_fields(config: Compose, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"prompt": "x"}, {"instruction": "x", "output": "y"}])
    with pytest.raises(ConfigError) as caught:
        dataset.read(config("dataset=file", f"dataset.path={file}").dataset)
    assert f'{file}:2 has no "question"' in str(caught.value)
    assert "it has the fields instruction, output: " in str(caught.value)
    assert '"conversations" (ShareGPT)' in str(caught.value)


def test_bad_rows_are_skipped_and_counted_on_request(config: Compose, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "\\ud83d"}\n{"x": 1}\n{"prompt": NaN}\n{"id": "q1", "prompt": "b"}\n')
    overrides = ("dataset=file", f"dataset.path={file}")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2 has half a character .*dataset\.on_bad_row=skip"):
        dataset.read(config(*overrides).dataset)
    questions = dataset.read(config(*overrides, "dataset.on_bad_row=skip").dataset)
    assert [row.question for row in questions.rows] == ["a"]
    assert [bad.partition(" ")[0][-2:] for bad in questions.bad] == [":2", ":3", ":4", ":5"]
    file.write_text('{"x": 1}\n')
    with pytest.raises(ConfigError, match=r"has no questions that can be used \(1 bad rows"):
        dataset.read(config(*overrides, "dataset.on_bad_row=skip").dataset)


def test_rows_after_the_limit_are_not_read(config: Compose, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"prompt": "a"}, {"prompt": "b"}, {"x": 1}])
    cfg = config("dataset=file", f"dataset.path={file}", "dataset.limit=2")
    assert len(dataset.read(cfg.dataset).rows) == 2


class _Words:
    """A tokenizer with one token a word, whose chat template accepts no system messages."""

    def chat(self, text: str) -> list[int]:
        return [1, *range(len(text.split()))]

    def messages(self, messages: chats.Messages) -> list[int]:
        if any(role == "system" for role, _ in messages):
            raise ValueError("System role not supported")
        return [number for number, (_, text) in enumerate(messages) for _ in text.split()]

    def counts(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def test_a_row_s_answer_length_is_used_up_to_output_len(config: Compose, tmp_path: Path) -> None:
    rows = [
        {"conversations": _sharegpt(ASKED, ("assistant", "one two three four five"))},
        {"prompt": "a", "output_len": 9},
        {"prompt": "b"},
        {"prompt": "c", "output_len": 2},
    ]
    overrides = ("dataset=file", f"dataset.path={_file(tmp_path, rows)}", "workload.output_len=6")
    cfg = config(*overrides)
    source = QuestionPrompts()
    questions = source.read(cfg, lambda _: None)
    data = PromptData(1000, prompts.as_token_ids, tokenized(questions.rows, _Words()))  # type: ignore[arg-type]
    requests = prompts.measured(cfg, plan(cfg)[0].cells[0], 0, data)
    assert [request.max_tokens for request in requests] == [5, 6, 6, 2]
    inputs, [note] = source.inputs(cfg, questions, data)
    assert inputs["questions"]["output_lengths_by_row"] == 3
    assert inputs["questions"]["cut_to_output_len"] == 1
    assert note == (
        "dataset rows.jsonl: 4 questions; 3 set the length of their answer, 1 of them above "
        "workload.output_len=6, which applies instead"
    )
    # A configured distribution takes precedence over the rows' lengths.
    drawn = config(*overrides, "workload.output_distribution=uniform", "workload.output_spread=0.5")
    requests = prompts.measured(drawn, plan(drawn)[0].cells[0], 0, data)
    assert {request.max_tokens for request in requests} <= set(range(3, 10))
    assert [request.max_tokens for request in requests] != [5, 6, 6, 2]


def test_a_conversation_that_the_template_refuses_is_named(config: Compose, tmp_path: Path) -> None:
    file = _file(tmp_path, [{"prompt": "a"}, {"messages": _openai(SYSTEM, ASKED)}])
    rows = dataset.read(config("dataset=file", f"dataset.path={file}").dataset).rows
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2 does not fit the model's chat template \(System role"):
        tokenized(rows, _Words())  # type: ignore[arg-type]
    [(_, ids)] = tokenized(rows[:1], _Words())  # type: ignore[arg-type]
    assert np.array_equal(ids, [0])


@pytest.mark.parametrize(
    ("overrides", "message"),
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
    config: Compose,
    double: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    from wp1.model import models
    from wp1.runner.prepare import prepare

    def prepared(*_: Any) -> None:
        raise AssertionError("the model was prepared first")

    monkeypatch.setattr(models, "prepare", prepared)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "\\ud83d", "question": "Why?", "time_s": 0, "prompt_len": 3, "output_len": 2}\n')
    with pytest.raises(ConfigError, match=message):
        prepare(config(*(override.format(file) for override in overrides)), tmp_path / "engine.log", lambda _: None)

"""Rows of chat datasets: ShareGPT conversations, OpenAI messages and batches, and plain prompts.

Every form becomes the messages to send and, if the row gives it, the length of the answer. A recorded conversation
(`conversations`) is sent up to its first answer. `messages` are a request with its history: all are sent, except a
last message that is the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wp1.workload.row_files import BadRowError, fields_of

Messages = tuple[tuple[str, str], ...]  # role and text

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
# As OpenAI's APIs and vLLM's own benchmark call it. The first that a row has is used.
OUTPUT_LENGTHS = ("output_len", "max_completion_tokens", "max_tokens", "max_output_tokens")
FORMS = ("messages", "conversations", "conversation", "prompt")
MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Asked:
    """What a row asks. answer: the recorded answer; output_len: the number of tokens that the row asks for."""

    messages: Messages
    answer: str | None = None
    output_len: int | None = None


def asked_of(fields: Mapping[str, Any]) -> Asked | None:
    """What a row asks, or None if it is in none of the chat forms. Raises BadRowError if the row is malformed."""
    body = fields.get("body")
    if isinstance(body, Mapping):
        # In OpenAI's batch files the request is under "body".
        inner = asked_of(body)
        if inner is None:
            raise BadRowError(
                f'has a "body" with neither "messages" nor "prompt"; its fields are {fields_of(dict(body))}'
            )
        return inner
    length = output_len_of(fields)
    if isinstance(fields.get("messages"), list):
        messages, answer = _request(_messages(fields["messages"], "messages"))
    elif (name := next((n for n in ("conversations", "conversation") if isinstance(fields.get(n), list)), "")) != "":
        messages, answer = _recorded(_messages(fields[name], name))
    elif isinstance(fields.get("prompt"), str):
        if not fields["prompt"].strip():
            raise BadRowError('has an empty "prompt"')
        messages, answer = (("user", fields["prompt"]),), None
    elif (name := next((name for name in FORMS if fields.get(name) is not None), None)) is not None:
        raise BadRowError(f'has "{name}" that is not a {"text" if name == "prompt" else "list of turns"}')
    else:
        return None
    return Asked(messages, answer if answer and answer.strip() else None, length)


def output_len_of(fields: Mapping[str, Any]) -> int | None:
    """The answer length (tokens) that a row asks for, or None. Raises BadRowError unless it is a whole number ≥ 1."""
    for name in OUTPUT_LENGTHS:
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= MOST_TOKENS:
            raise BadRowError(f'has "{name}" {ascii(value)[:40]}: it must be a whole number of tokens, 1 or more')
        return value
    return None


def _messages(turns: list[Any], name: str) -> Messages:
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise BadRowError(f'has "{name}" whose turn {number} is not an object')
        name_of_role = turn.get("from", turn.get("role"))
        role = ROLES.get(name_of_role.lower()) if isinstance(name_of_role, str) else None
        if role is None:
            shown = f"role {name_of_role[:40]!r}" if isinstance(name_of_role, str) else "no role"
            raise BadRowError(
                f'has "{name}" whose turn {number} has {shown}: use system, user (human) or assistant (gpt)'
            )
        text = turn.get("value", turn.get("content"))
        messages.append((role, _content(text, role, f'"{name}" turn {number}')))
    return tuple(messages)


def _content(content: Any, role: str, where: str) -> str:
    """A turn's text, joined if it comes in parts."""
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise BadRowError(f"has a part of type {str(kind)[:40]} in {where}: only text is supported")
            parts.append(part["text"])
        content = "".join(parts)
    if content is None and role == "assistant":
        # A tool call has no text.
        return ""
    if not isinstance(content, str):
        raise BadRowError(f"has no text in {where}")
    if role == "user" and not content.strip():
        raise BadRowError(f"has an empty question in {where}")
    return content


def _recorded(messages: Messages) -> tuple[Messages, str | None]:
    """The turns before the first answer to a question, without earlier answers; and that answer."""
    first = next((n for n, (role, _) in enumerate(messages) if role == "user"), None)
    if first is None:
        raise BadRowError("has a conversation without a question (no human turn)")
    answer = next((n for n, (role, _) in enumerate(messages) if role == "assistant" and n > first), None)
    asked = tuple(message for message in messages[:answer] if message[0] != "assistant")
    return asked, None if answer is None else messages[answer][1]


def _request(messages: Messages) -> tuple[Messages, str | None]:
    """The messages of a request with its history, and the answer if the last message is one."""
    answer = messages[-1][1] if messages and messages[-1][0] == "assistant" else None
    asked = messages if answer is None else messages[:-1]
    if not any(role == "user" for role, _ in asked):
        raise BadRowError('has "messages" without a question (no user message)')
    return asked, answer

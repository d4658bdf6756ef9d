"""What a row of a chat data set asks: ShareGPT conversations, OpenAI messages and batches, and plain prompts.

Every form becomes the messages that are sent and, if the row says it, how long the answer is to be. Of a recorded
conversation (`conversations`) the turns up to the first answer are asked; of `messages`, which are a request with its
history, all of them, or all before the last if that is an answer.
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
# By the names of OpenAI's interfaces and of vLLM's own benchmark; the first that a row has counts.
OUTPUT_LENGTHS = ("output_len", "max_completion_tokens", "max_tokens", "max_output_tokens")
FORMS = ("messages", "conversations", "conversation", "prompt")
MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class Asked:
    """What a row asks. answer: what was answered when it was recorded; output_len: tokens that it asks for."""

    messages: Messages
    answer: str | None = None
    output_len: int | None = None


def asked_of(fields: Mapping[str, Any]) -> Asked | None:
    """What a row in one of the chat forms asks; None of a row in none of them. Raises BadRowError for a bad one."""
    body = fields.get("body")
    if isinstance(body, Mapping):
        # OpenAI's batch files: what is sent is under "body".
        inner = asked_of(body)
        if inner is None:
            raise BadRowError(
                f'has a "body" with neither "messages" nor "prompt"; it has the fields {fields_of(dict(body))}'
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
        raise BadRowError(f'has "{name}" that is no {"text" if name == "prompt" else "list of turns"}')
    else:
        return None
    return Asked(messages, answer if answer and answer.strip() else None, length)


def output_len_of(fields: Mapping[str, Any]) -> int | None:
    """Tokens that a row of any form asks for. Raises BadRowError for what is no whole number of 1 or more."""
    for name in OUTPUT_LENGTHS:
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= MOST_TOKENS:
            raise BadRowError(f'has "{name}" {ascii(value)[:40]}: a whole number of tokens from 1 on is needed')
        return value
    return None


def _messages(turns: list[Any], name: str) -> Messages:
    found = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise BadRowError(f'has "{name}" whose turn {number} is not an object')
        said = turn.get("from", turn.get("role"))
        role = ROLES.get(said.lower()) if isinstance(said, str) else None
        if role is None:
            shown = f"of {said[:40]!r}" if isinstance(said, str) else "without one"
            raise BadRowError(
                f'has "{name}" whose turn {number} is {shown}: roles are system, user (human) and assistant (gpt)'
            )
        text = turn.get("value", turn.get("content"))
        found.append((role, _content(text, role, f'"{name}" turn {number}')))
    return tuple(found)


def _content(content: Any, role: str, where: str) -> str:
    """A turn's text; parts of several are put together."""
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise BadRowError(f"has in {where} a part of type {str(kind)[:40]}: only texts can be asked")
            parts.append(part["text"])
        content = "".join(parts)
    if content is None and role == "assistant":
        # A call of a tool: nothing was said.
        return ""
    if not isinstance(content, str):
        raise BadRowError(f"has in {where} no text")
    if role == "user" and not content.strip():
        raise BadRowError(f"has in {where} an empty question")
    return content


def _recorded(messages: Messages) -> tuple[Messages, str | None]:
    """The turns before the first answer, and that answer. Answers before anything was asked are left out."""
    first = next((n for n, (role, _) in enumerate(messages) if role == "user"), None)
    if first is None:
        raise BadRowError("has a conversation in which nothing is asked (no human turn)")
    answer = next((n for n, (role, _) in enumerate(messages) if role == "assistant" and n > first), None)
    asked = tuple(message for message in messages[:answer] if message[0] != "assistant")
    return asked, None if answer is None else messages[answer][1]


def _request(messages: Messages) -> tuple[Messages, str | None]:
    """A request with its history, and the answer if the last message is one."""
    answer = messages[-1][1] if messages and messages[-1][0] == "assistant" else None
    asked = messages if answer is None else messages[:-1]
    if not any(role == "user" for role, _ in asked):
        raise BadRowError('has "messages" in which nothing is asked (no user message)')
    return asked, answer

"""Texts as a model's token ids, with or without its chat template. Runs in the process that sends the requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError


class ModelTokens:
    """The tokenizer in a model's folder. Raises ConfigError if there is none, or if it has no working chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # each of transformers' file readers raises its own errors
            raise ConfigError(f"{folder} has no tokenizer ({_said(error)}): add the tokenizer files") from error
        try:
            self.chat("?")
        except Exception as error:  # templates raise through jinja2, with their own messages
            raise ConfigError(
                f"the tokenizer in {folder} has no working chat template ({_said(error)}): add chat_template.jinja"
            ) from error

    def chat(self, text: str, opening: str = "") -> list[int]:
        """Token ids of one user message in the chat template, up to where the assistant begins.

        opening: a given beginning of the answer, which the model continues.
        """
        ids = self._templated([{"role": "user", "content": text}])
        return ids + (self._tokenizer(opening, add_special_tokens=False).input_ids if opening else [])

    def messages(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a conversation (pairs of role and text) in the chat template, up to where the assistant begins.

        Raises ValueError if the template does not accept these roles in this order.
        """
        try:
            return self._templated([{"role": role, "content": text} for role, text in messages])
        except Exception as error:  # templates raise through jinja2, with their own messages
            raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error

    def _templated(self, chat: list[dict[str, str]]) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    def plain(self, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer adds before it (for some models a beginning-of-text token)."""
        return self._tokenizer(text).input_ids

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, without special tokens."""
        return [len(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text, without special tokens."""
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _said(error: Exception) -> str:
    """An error's class and the beginning of its text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

"""Texts as a model's token ids, by its chat template or without, in the process that sends them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError


class ModelTokens:
    """The tokenizer in a model's folder. Raises ConfigError where there is none with a chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.chat("?")
        except Exception as error:  # transformers raises what its many readers raise
            raise ConfigError(
                f"{folder} has no tokenizer with a chat template ({type(error).__name__}): add its tokenizer files"
            ) from error

    def chat(self, text: str, opening: str = "") -> list[int]:
        """A user's message by the chat template, up to where the assistant begins.

        opening: the words that the answer begins with, which the model goes on from.
        """
        ids = self._templated([{"role": "user", "content": text}])
        return ids + (self._tokenizer(opening, add_special_tokens=False).input_ids if opening else [])

    def messages(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """A conversation (role and text each) by the chat template, up to where the assistant begins.

        Raises ValueError where the template does not take these roles in this order.
        """
        try:
            return self._templated([{"role": role, "content": text} for role, text in messages])
        except Exception as error:  # a template raises by jinja2, in words of its own
            raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error

    def _templated(self, chat: list[dict[str, str]]) -> list[int]:
        return list(
            self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    def plain(self, text: str) -> list[int]:
        """A text alone, with what the tokenizer itself puts before it (a beginning-of-text token, of some models)."""
        return self._tokenizer(text).input_ids

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text by itself, without anything before or after it."""
        return [len(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []

    def ids(self, text: str) -> list[int]:
        """A part of a text, without anything before it."""
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

"""A folder without a tokenizer, or with one that has no chat template, is refused with what is missing."""

from pathlib import Path

import pytest

from wp1.core.errors import ConfigError
from wp1.workload.tokens import ModelTokens


def test_a_missing_tokenizer_is_said_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path} has no tokenizer \(\w+: .+\): add the tokenizer files$"):
        ModelTokens(tmp_path)


def test_a_missing_chat_template_is_said_as_such(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no working chat template \(ValueError: .*chat_template.*\): add chat_"):
        ModelTokens(tmp_path)

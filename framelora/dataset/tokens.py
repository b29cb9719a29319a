"""In what the length of a caption is counted: tokens of the base model's tokenizer, or words where it has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from framelora.console import UserError, one_line, relative


@dataclass(frozen=True)
class TextLength:
    """How long a text is."""

    unit: str  # "tokens" or "words"
    count: Callable[[str], int]


def text_length(base: Path) -> TextLength:
    """How captions are measured for a base model: in tokens where it has a folder `tokenizer/`, else in words.

    Tokens that stand around every text count. `tokenizer.json` is read by the tokenizers library, which starts
    at once; older files take transformers and torch.

    Raises:
        UserError: the tokenizer can't be loaded.
    """
    folder = base / "tokenizer"
    if not folder.is_dir():
        return WORDS
    whole = folder / "tokenizer.json"
    # Both libraries raise whatever Rust or Python met in the file.
    try:
        if whole.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(whole))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return TextLength("tokens", lambda text: len(tokenizer.encode(text).ids))
        from transformers import AutoTokenizer

        older = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return TextLength("tokens", lambda text: len(older(text).input_ids))
    except Exception as error:
        reason = one_line(error)[:200]
        raise UserError(
            f"model.base: the tokenizer in {relative(folder)} can't be loaded ({reason}): restore its files"
        ) from error


def count_words(text: str) -> int:
    """Words; in scripts without spaces, characters."""
    return len(re.findall(r"[぀-ヿ㐀-鿿가-힯]|[^\W_]+", text))


WORDS = TextLength("words", count_words)

"""From a caption as written to the texts that a model is given. Every draw is a function of its seed."""

from __future__ import annotations

import numpy as np

from framelora.digest import draw_seed


def full_text(text: str, *, trigger_word: str, prefix: str, suffix: str) -> str:
    """A caption with prefix and suffix around it, and the trigger word in front unless it is already in it.

    An empty caption becomes the trigger word alone: prefix and suffix describe nothing.
    """
    whole = f"{prefix}{text}{suffix}" if text else ""
    if not trigger_word or trigger_word in whole:
        return whole
    return f"{trigger_word}, {whole}" if whole else trigger_word


def tag_variants(text: str, *, count: int, keep: int, seed: int) -> list[str]:
    """The caption as written, and its comma-separated tags in `count - 1` other drawn orders.

    Text embeddings are cached, so the orders are drawn once, and training picks one of them at each step.
    A caption with fewer than two tags to move has the same text in each place.

    Args:
        text: the caption.
        count: length of the list, 1 or more.
        keep: tags at the start that stay in place, for example the trigger word.
        seed: another seed draws other orders.
    """
    tags = [tag.strip() for tag in text.split(",")]
    variants = [text]
    for number in range(1, count):
        order = np.random.default_rng(draw_seed(seed, "tags", number, text)).permutation(len(tags[keep:]))
        variants.append(", ".join(tags[:keep] + [tags[keep:][place] for place in order]) if len(order) > 1 else text)
    return variants

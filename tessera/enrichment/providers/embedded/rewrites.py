"""Summaries and paraphrases without a language model: stand-ins that keep what both are in the study, restatements.

A summary is the title and the sentence of the description nearest to the whole; a paraphrase tells the fields as a
sentence. Neither adds a use or a buyer that the text does not name.
"""

import re
from collections.abc import Sequence

from tessera.enrichment.encoders import TextEncoder
from tessera.enrichment.providers.base import Item

SENTENCES = 8  # considered, from the start of a description
_END = re.compile(r"(?<=[.!?])\s+")
_STATED = 300  # characters of a description that a paraphrase repeats


def summaries(encoder: TextEncoder, items: Sequence[Item]) -> list[str]:
    """The title, then the sentence whose vector is nearest to the mean of all."""
    split = [[s for s in _END.split(" ".join(item.description.split())) if len(s) > 20][:SENTENCES] for item in items]
    flat = [sentence for sentences in split for sentence in sentences]
    vectors = encoder.encode(flat) if flat else None
    written, start = [], 0
    for item, sentences in zip(items, split, strict=True):
        own = vectors[start : start + len(sentences)] if vectors is not None and sentences else None
        start += len(sentences)
        central = "" if own is None else sentences[int((own @ own.mean(0)).argmax())]
        written.append(" ".join(part for part in (item.title.rstrip(".") + ".", central) if part))
    return written


def paraphrases(items: Sequence[Item]) -> list[str]:
    """The fields that are not empty as sentences: This CATEGORY by BRAND is sold as TITLE. It is ATTRIBUTES. ..."""
    written = []
    for item in items:
        kind = item.categories[-1] if item.categories else "product"
        maker = f" by {item.brand}" if item.brand else ""
        parts = [f"This {kind}{maker} is sold as {item.title.rstrip('.')}."]
        if item.attributes:
            parts.append(f"It is {', '.join(item.attributes)}.")
        if item.description:
            parts.append(" ".join(item.description.split())[:_STATED])
        written.append(" ".join(parts))
    return written

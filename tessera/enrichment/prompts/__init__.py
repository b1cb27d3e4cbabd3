"""Versioned prompts: one Markdown file each, `{item}` and the other braces filled in by the prompted provider.

The version in the ledger is the file's name and a digest of its text, so that an edited prompt asks the model again
even if someone forgets to rename the file.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tessera.files import sha256_of

_LOOKALIKES = str.maketrans("<>", "‹›")
Rewrite = Literal["summary", "paraphrase"]
"""Peers of intents in the study of text variants: the same model says in other words what the text says already."""
Kind = Literal["caption", "intents", "quality"] | Rewrite
CURRENT: dict[Kind, str] = {
    "caption": "caption.v2", "intents": "intents.v2", "quality": "quality.v2", "summary": "summary.v2",
    "paraphrase": "paraphrase.v2",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A prompt's text; `version` is what the ledger keys it by."""

    name: str
    text: str

    @property
    def version(self) -> str:
        """Name and the first 8 hex digits of the text's SHA-256, as in "caption.v2@0f3a91bc"."""
        return f"{self.name}@{sha256_of(self.text)[:8]}"

    def fill(self, **values: str) -> str:
        """Replace `{key}` by its value; other braces, as in JSON examples, stay, and so do all that values hold."""
        keys = re.compile("{(" + "|".join(map(re.escape, values)) + ")}")
        return keys.sub(lambda match: values[match[1]], self.text)


def framed(text: str, name: str = "product") -> str:
    """Somebody else's text between marks that it cannot write itself, so that a model can tell it from instructions.

    Angle brackets become single quotation marks of the same look: they would close the frame, or spell a chat
    template's own tokens.
    """
    return f"<{name}>\n{text.translate(_LOOKALIKES)}\n</{name}>"


def load_prompt(kind: Kind) -> Prompt:
    """The current prompt of a kind."""
    name = CURRENT[kind]
    return Prompt(name, (Path(__file__).parent / f"{name}.md").read_text(encoding="utf-8").strip())

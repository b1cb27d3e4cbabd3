"""Versioned prompts: one Markdown file each, `{item}` and the other braces filled in by the prompted provider.

The version in the ledger is the file's name and a digest of its text, so that an edited prompt asks the model again
even if someone forgets to rename the file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tessera.files import sha256_of

Rewrite = Literal["summary", "paraphrase"]
"""Peers of intents in the study of text variants: the same model says in other words what the text says already."""
Kind = Literal["caption", "intents", "quality"] | Rewrite
CURRENT: dict[Kind, str] = {
    "caption": "caption.v1", "intents": "intents.v1", "quality": "quality.v1", "summary": "summary.v1",
    "paraphrase": "paraphrase.v1",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A prompt's text; `version` is what the ledger keys it by."""

    name: str
    text: str

    @property
    def version(self) -> str:
        """Name and the first 8 hex digits of the text's SHA-256, as in "caption.v1@0f3a91bc"."""
        return f"{self.name}@{sha256_of(self.text)[:8]}"

    def fill(self, **values: str) -> str:
        """Replace `{key}` by its value; other braces, as in JSON examples, stay."""
        text = self.text
        for key, value in values.items():
            text = text.replace("{" + key + "}", value)
        return text


def load_prompt(kind: Kind) -> Prompt:
    """The current prompt of a kind."""
    name = CURRENT[kind]
    return Prompt(name, (Path(__file__).parent / f"{name}.md").read_text(encoding="utf-8").strip())

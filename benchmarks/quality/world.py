"""What all systems share: one catalogue, its enrichments and its split, each made when it is first asked for."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.quality.store import key_of
from benchmarks.quality.systems import Words
from pipelines.local import source_files
from tessera.catalog import ingest
from tessera.config import Settings, relation, to_json
from tessera.enrichment import stages
from tessera.enrichment.branches import Branch, branch_settings
from tessera.files import replacing, sha256_of
from tessera.schema import read_table, write_table
from tessera.tokenizer import relations


@dataclass(frozen=True)
class World:
    """settings: of the run, whose enrichment and source all systems have; folder: of everything that is computed.

    Tables and weights are files named by what made them; one that is there is used.
    """

    settings: Settings
    folder: Path
    users: int

    @property
    def digest(self) -> str:
        """Digest of the source's contents, the same on every machine, and of what of its users is taken."""
        s = self.settings
        told = [s.source, _contents(s.path, s.source), to_json(s.catalogue), to_json(s.shop), self.users]
        return key_of([*told, s.seed if s.source == "shop" else 0])

    def ingest(self) -> None:
        """Read the source."""
        if not self.splits.exists():
            ingest.run(self.settings, self._url, self.home)
            write_table("splits", _some(read_table("splits", self.home / "splits.parquet"), self.users), self.splits)

    @property
    def home(self) -> Path:
        """Folder of the catalogue's tables."""
        return self.folder / self.digest

    @property
    def items(self) -> Path:
        """The items."""
        return self.home / "items.parquet"

    @property
    def splits(self) -> Path:
        """The split that all systems train on and are measured on."""
        return self.home / "split.parquet"

    @property
    def pictured(self) -> bool:
        """Whether any item has a usable photo."""
        return "ok" in read_table("items", self.items)["image_status"].to_pylist()

    @property
    def _url(self) -> str:
        # Captions, intents and embeddings outlive a change of the source: the ledger keys them by content.
        return f"sqlite:///{self.folder.resolve() / 'catalogue.db'}"

    def captions(self) -> Path:
        """What the photos show, in words."""

        def make(out: Path) -> None:
            stages.run_captions(self.items, self.home / "images", out, self.settings, self._url)

        return self._made("captions", [], make)

    def intents(self, branch: Branch, words: Words = "intents") -> Path:
        """Descriptors mined from what the branch sees, or a rewrite that stands in their place."""
        settings, captions = branch_settings(self.settings, branch), self.captions()

        def make(out: Path) -> None:
            if words in ("summary", "paraphrase"):
                stages.run_rewrites(words, self.items, captions, out, settings, self._url)
            else:
                stages.run_intents(self.items, captions, out, settings, self._url)

        return self._made("intents", [settings.enrichment.use_captions, words], make)

    def quality(self, branch: Branch) -> Path:
        """QARM's labels of the descriptors."""
        settings, captions, intents = branch_settings(self.settings, branch), self.captions(), self.intents(branch)

        def make(out: Path) -> None:
            stages.run_quality(self.items, captions, intents, out, settings, self._url)

        return self._made("quality", [settings.enrichment.use_captions], make)

    def embeddings(self, branch: Branch, words: Words) -> Path:
        """Vectors of the texts and photos, as branch and words choose the texts."""
        settings = branch_settings(self.settings, branch)
        settings = replace(settings, enrichment=replace(settings.enrichment, use_intents=words != "none"))
        captions, intents = self.captions(), self.intents(branch, words)

        def make(out: Path) -> None:
            stages.run_embeddings(
                self.items, self.home / "images", captions, intents, out, settings, self._url
            )

        # One model for text and photo sees the photo here already.
        joint = settings.enrichment.multimodal.provider != "embedded"
        pictures = [settings.tokenizer.use_images] if joint else []
        return self._made("embeddings", [settings.enrichment.use_captions, words, *pictures], make)

    def related(self, branch: Branch, words: Words, settings: Settings) -> tuple[Path, Path | None]:
        """The embeddings that a tokenizer of these settings is fitted on, and the weights that ground them, if any."""
        embeddings, wanted = self.embeddings(branch, words), relation(settings)
        if wanted == "none":
            return embeddings, None
        intents = self.intents(branch, words)

        def make(out: Path) -> None:
            # A relation is told in vectors or in weights: only one of the two files is written.
            relations.run(self.items, intents, self.splits, embeddings, out, out, settings, self._url)

        told = [branch, words, settings.seed, settings.tokenizer.use_images]
        made = self._made(wanted, told, make, "tokenizer", *(["grounding"] if wanted == "grounding" else []))
        return (made, None) if wanted == "collaborative" else (embeddings, made)

    def _made(self, name: str, told: Sequence[object], make: Callable[[Path], None], *parts: str) -> Path:
        key = key_of([name, to_json(self.settings.enrichment), *told], "enrichment", *parts)
        path = self.home / f"{name}-{key}.{'safetensors' if name == 'grounding' else 'parquet'}"
        if not path.exists():
            with replacing(path) as temporary:
                make(temporary)
        return path


def _some(splits: pa.Table, users: int) -> pa.Table:
    """`users` users drawn from a split, in its order; 0 takes all."""
    if not users or users >= splits.num_rows:
        return splits
    return splits.take(np.sort(np.random.default_rng(0).permutation(splits.num_rows)[:users]))


@cache
def _contents(path: Path | None, source: str) -> str:
    # By content, not by time as the pipelines do: cells are copied between machines, and so are sources.
    if path is None:
        return ""
    files = [(p.relative_to(path), hashlib.sha256(p.read_bytes()).hexdigest()) for p in source_files(path, source)]
    return sha256_of(*(f"{name} {digest}" for name, digest in files))[:16]

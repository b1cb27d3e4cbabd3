"""The settings and the folder of the small shop that goes from image to image."""

from dataclasses import replace
from pathlib import Path

from tessera.config import Settings, preset

WORK = Path("/work")
HOME = WORK / "home"


def settings() -> Settings:
    """The demo at a size that takes seconds."""
    demo = preset("demo")
    return replace(
        demo,
        shop=replace(demo.shop, items=60, users=120),
        tokenizer=replace(demo.tokenizer, codebook_size=16, epochs=5),
        policy=replace(demo.policy, hidden=32, layers=1, heads=2, text_vocabulary=300, epochs=1),
        evaluation=replace(demo.evaluation, beam=20),
    )


def table(name: str) -> Path:
    """Where a table is between two images."""
    return WORK / f"{name}.parquet"

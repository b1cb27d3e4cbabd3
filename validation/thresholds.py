"""Every number a gate compares with, in one place.

A threshold without a suffix blocks the pipeline (severity "critical"); one that ends in `_warning` is only reported.
Shares are of the rows that a check looks at, between 0 and 1: a whole catalogue's, in a refresh too, where the
published rows stand beside those made now (`components/gates/refreshed.py`). Of embeddings it has only the latter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """What is still good enough."""

    # --- every enrichment -------------------------------------------------------------------------------------------
    failed_share: float = 0.05
    """Rows whose model call failed. Failed items are retried on the next run, so a few are fine; more than one in
    twenty is an endpoint or a prompt that does not work, not bad luck."""

    # --- catalogue --------------------------------------------------------------------------------------------------
    lost_photo_share_warning: float = 0.2
    """Items whose photo is missing or corrupt. Dead links are normal in published catalogues and the item still has its
    text, so this never blocks."""

    # --- captions (of items with a usable photo) --------------------------------------------------------------------
    caption_min_characters: int = 15
    """Shorter than "a red wool hat": nothing there that the title does not say."""
    caption_max_characters: int = 2000
    """Four to five times what the prompt asks for; a longer text is a model that did not stop."""
    caption_min_distinct_words: float = 0.3
    """Distinct words among all words of a caption (of 20 words or more). Prose has 0.6 and above; a model stuck in a
    loop falls below 0.3."""
    caption_bad_share: float = 0.01
    """Captions that are blank, boilerplate or a loop. One in a hundred does not move an embedding space."""
    caption_refusal_share: float = 0.0
    """Refusals ("I cannot see the image"). They count as failures upstream: one that gets through is a bug there."""
    caption_repeated_share: float = 0.6
    """Rows that repeat an earlier row's caption. Near twins share a photo and rightly share a caption, and the embedded
    provider speaks in colours and tags; beyond this the captions no longer tell items apart."""
    caption_repeated_share_warning: float = 0.2
    """A vision-language model repeats itself far less than this."""

    # --- intents ----------------------------------------------------------------------------------------------------
    descriptors_min: int = 1
    """An ok row without a descriptor is a failed row that was not marked so."""
    descriptors_max: int = 20
    """The prompt asks for a handful; a longer list is a model that enumerates its vocabulary."""
    intents_bad_share: float = 0.01
    """Rows with blank texts, debris of JSON in a text, or a descriptor twice."""
    vague_share: float = 0.1
    """Rows with a descriptor that fits any product ("good quality", "nice")."""
    grounded_min: float = 0.25
    """Share of a row's descriptors that use a word of the item's own text or caption. Motives are implied rather than
    written, so most descriptors may be free; none at all is a descriptor of another product."""
    ungrounded_share: float = 0.45
    """Rows that may stay below `grounded_min`. Measured with the embedded provider on the shop, Scientific, Beauty and
    the grocery photos: 0.10 to 0.34 as mined, 0.51 to 0.69 with each item given another one's descriptors, which is
    what this check has to stop."""
    ungrounded_share_warning: float = 0.25
    """Above, mining guesses: many descriptors have nothing to do with the item, though not all."""

    # --- quality labels ---------------------------------------------------------------------------------------------
    label_share_min: float = 0.005
    label_share_max: float = 0.995
    """Share of labels that are 1. Outside, the judge says the same of everything and a label teaches nothing (QARM)."""
    label_share_min_warning: float = 0.1
    label_share_max_warning: float = 0.9
    """Lopsided labels still carry some signal; the embedded judge's rules tend to one side."""
    label_balance_from: int = 50
    """Fewer labels than this say nothing about balance."""
    score_tolerance: float = 1e-3
    """Largest difference between the stored item score and the confidence-weighted mean of its labels (float32)."""

    # --- embeddings -------------------------------------------------------------------------------------------------
    norm_tolerance: float = 0.01
    """Encoders return unit vectors; float16 storage is off by a thousandth at most."""
    duplicate_text_share: float = 0.5
    """Items whose text vector equals an earlier item's. Resellers list one text twice; half is a broken encoder."""
    duplicate_image_share_warning: float = 0.5
    """Variants often share a photo, so equal image vectors are only reported."""
    lost_image_share: float = 0.02
    """Items with a usable photo but no image vector."""
    shares_from: int = 50
    """Of fewer embeddings in a refresh the two shares above are only reported: three sizes of a new shirt may be all
    there is, with one text. Vectors are not published, so those of the other items are not there to be counted."""

    # --- semantic IDs -----------------------------------------------------------------------------------------------
    codebook_max: int = 65536
    """No codebook is larger; used when the gate is not told the size."""
    utilisation_min: float = 0.1
    """Distinct codes used at a level over min(codebook size, items that the levels before leave together). Below a
    tenth the codebook has collapsed: the level says little, and collisions pile up at the next one."""
    moved_share_warning: float = 0.5
    """Items that collision resolution gave other last codes than their embedding asked for. It hides a collapsed last
    level from utilisation; past half, the last code says little of the item."""
    utilisation_min_warning: float = 0.5
    """A healthy quantizer uses most of its codes; published tokenizers report 0.8 and above."""


THRESHOLDS = Thresholds()

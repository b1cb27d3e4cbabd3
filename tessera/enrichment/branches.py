"""What of an item's photo enters its SID: the branches of CMSA (DeepInterestGR, arXiv 2604.20861), and text variants.

| branch | the photo in words (caption) | the photo as a vector |
| --- | --- | --- |
| text | no | no |
| caption | yes | no |
| image | no | yes |
| both | yes | yes |

A branch without captions mines its intents without them too, or the photo would come in through the descriptors.
"""

from dataclasses import replace
from typing import Literal

from tessera.config import Settings

Branch = Literal["text", "caption", "image", "both"]


def branch_settings(settings: Settings, branch: Branch) -> Settings:
    """The same run with this branch of CMSA."""
    return replace(
        settings,
        enrichment=replace(settings.enrichment, use_captions=branch in ("caption", "both")),
        tokenizer=replace(settings.tokenizer, use_images=branch in ("image", "both")),
    )

"""Which Expectations each gate holds its tables to; columns, nullability and types come from `tessera.schema`."""

from typing import Any, Literal

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.row_conditions import Column

from validation.columns import Checks, schema
from validation.expectations import captions, catalogue, embeddings, intents, quality, rows, sids
from validation.thresholds import Thresholds

Suite = Literal["catalogue", "captions", "intents", "embeddings", "sids"]

TABLES: dict[Suite, tuple[str, ...]] = {
    "catalogue": ("items", "interactions", "splits"),
    "captions": ("items", "captions"),
    "intents": ("items", "captions", "intents", "quality"),
    "embeddings": ("items", "embeddings"),
    "sids": ("items", "sids"),
}
"""The tables each gate reads."""

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING
OK = Column("status") == "ok"
WITH_PHOTO = Column("image_status") == "ok"


def build(
    suite: Suite, limits: Thresholds, codebook_size: int | None = None, *, joint: bool = False, few: bool = False
) -> dict[str, Checks]:
    """The Expectations of gate `suite`, by table.

    Args:
        limits: the thresholds.
        codebook_size: codes of one level, for the range of SIDs; None when it is not known.
        joint: text vectors hold the photos, too, so none has a vector of its own.
        few: embeddings are too few for a share of them to block.
    """
    if suite == "catalogue":
        return {"items": _items(limits), "interactions": _interactions(), "splits": _splits()}
    if suite == "captions":
        return {"items": [_covered("captions")], "captions": _captions(limits)}
    if suite == "intents":
        covered = [_covered("intents"), _covered("quality")]
        return {"items": covered, "intents": _intents(limits), "quality": _quality(limits)}
    if suite == "embeddings":
        return {"items": [_covered("embeddings")], "embeddings": _embeddings(limits, joint=joint, few=few)}
    return {"items": [_covered("sids")], "sids": _sids(limits, codebook_size)}


def _covered(table: str) -> Expectation:
    return rows.ExpectItemToHaveOneRow(column=f"{table}_rows", description=f"every item has exactly one row in {table}")


def _known(column: str = "item_id") -> Expectation:
    return rows.ExpectItemToBeInCatalogue(
        column_A=column, column_B="in_catalogue", description=f"{column} is an item of the catalogue"
    )


def _provenance(limits: Thresholds, *, with_photo: bool = False) -> Checks:
    where: dict[str, Any] = {"row_condition": WITH_PHOTO} if with_photo else {}
    return [
        gxe.ExpectColumnValuesToBeUnique(column="item_id"),
        _known(),
        gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["ok", "failed"]),
        gxe.ExpectColumnValuesToNotBeNull(column="reason", row_condition=Column("status") == "failed"),
        rows.ExpectEnrichmentToHaveSucceeded(
            column_A="status", column_B="reason", mostly=1 - limits.failed_share,
            description=f"at most {limits.failed_share:.0%} of the rows failed", **where,
        ),
    ]


def _items(limits: Thresholds) -> Checks:
    return [
        *schema("items"),
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectColumnValuesToBeUnique(column="item_id"),
        rows.ExpectTextNotToBeBlank(column="item_id", description="item_id is not blank"),
        rows.ExpectTextNotToBeBlank(column="title", description="title has a letter or a digit"),
        gxe.ExpectColumnValuesToBeInSet(column="image_status", value_set=["ok", "none", "missing", "corrupt"]),
        catalogue.ExpectPhotoToFitStatus(
            column_A="image_status", column_B="image",
            description="an item has a photo path exactly when its photo status is ok",
        ),
        gxe.ExpectColumnValuesToNotBeInSet(
            column="image_status", value_set=["missing", "corrupt"], mostly=1 - limits.lost_photo_share_warning,
            severity=WARNING,
        ),
    ]


def _interactions() -> Checks:
    return [
        *schema("interactions"),
        _known(),
        gxe.ExpectColumnValueLengthsToBeBetween(column="user_id", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="timestamp", min_value=0),
        catalogue.ExpectInteractionsToBeInOrder(
            column_list=["user_id", "timestamp", "position"], description="rows are sorted by user, time and position"
        ),
    ]


def _splits() -> Checks:
    return [
        *schema("splits"),
        gxe.ExpectColumnValuesToBeUnique(column="user_id"),
        catalogue.ExpectSplitToLeaveLastOut(
            column_list=["train", "validation", "test", "history"],
            description="train, validation and test are the user's history in time order, the last two held out",
        ),
    ]


def _captions(limits: Thresholds) -> Checks:
    # An item without a usable photo has nothing to caption: content checks look at the items that have one.
    where: dict[str, Any] = {"column": "caption", "row_condition": OK & WITH_PHOTO}
    mostly = 1 - limits.caption_bad_share
    return [
        *schema("captions"),
        *_provenance(limits, with_photo=True),
        gxe.ExpectColumnValuesToNotBeNull(**where),
        rows.ExpectTextNotToBeBlank(mostly=mostly, description="a caption is not blank", **where),
        gxe.ExpectColumnValueLengthsToBeBetween(
            min_value=limits.caption_min_characters, max_value=limits.caption_max_characters, mostly=mostly, **where
        ),
        captions.ExpectCaptionNotToBeBoilerplate(
            mostly=mostly, description="a caption says more than \"an image of a product\"", **where
        ),
        captions.ExpectCaptionNotToBeRefusal(
            mostly=1 - limits.caption_refusal_share, description='a caption is no refusal ("I cannot see the image")',
            **where,
        ),
        captions.ExpectCaptionNotToLoop(
            mostly=mostly, min_distinct=limits.caption_min_distinct_words,
            description="a caption does not go round in circles", **where,
        ),
        captions.ExpectCaptionsToBeDistinct(
            mostly=1 - limits.caption_repeated_share, description="captions tell items apart", **where
        ),
        captions.ExpectCaptionsToBeDistinct(
            mostly=1 - limits.caption_repeated_share_warning, description="captions rarely repeat", severity=WARNING,
            **where,
        ),
    ]


def _intents(limits: Thresholds) -> Checks:
    mostly = 1 - limits.intents_bad_share
    where: dict[str, Any] = {"column": "descriptors", "row_condition": OK}
    grounded: dict[str, Any] = {
        "column_A": "descriptors", "column_B": "own_text", "row_condition": OK, "min_share": limits.grounded_min,
    }
    return [
        *schema("intents"),
        *_provenance(limits),
        *(
            intents.ExpectTextsToBeListed(
                column=step, mostly=mostly, row_condition=OK,
                description=f"{step} is a list of texts, not blank, no debris of JSON",
            )
            for step in ("surface", "motives")
        ),
        intents.ExpectDescriptorsToBeWellFormed(
            mostly=mostly, description="descriptors have a text and a confidence, and none comes twice", **where
        ),
        intents.ExpectDescriptorCountToBeBetween(
            min_count=limits.descriptors_min, max_count=limits.descriptors_max,
            description=f"{limits.descriptors_min} to {limits.descriptors_max} descriptors an item", **where,
        ),
        intents.ExpectConfidencesToBeInRange(description="confidences are absent or in [0, 1]", **where),
        intents.ExpectDescriptorsNotToBeVague(
            mostly=1 - limits.vague_share, description="no descriptor fits any product (\"good quality\")", **where
        ),
        intents.ExpectDescriptorsToBeGrounded(
            mostly=1 - limits.ungrounded_share,
            description=f"{limits.grounded_min:.0%} of an item's descriptors use a word of its own text or caption",
            **grounded,
        ),
        intents.ExpectDescriptorsToBeGrounded(
            mostly=1 - limits.ungrounded_share_warning, description="few items have ungrounded descriptors",
            severity=WARNING, **grounded,
        ),
    ]


def _quality(limits: Thresholds) -> Checks:
    balance: dict[str, Any] = {"column": "labels", "row_condition": OK, "from_count": limits.label_balance_from}
    return [
        *schema("quality"),
        *_provenance(limits),
        quality.ExpectLabelsToFitDescriptors(
            column_A="labels", column_B="descriptors", row_condition=OK,
            description="a label, 0 or 1, for each descriptor",
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="score", row_condition=OK),
        gxe.ExpectColumnValuesToBeBetween(column="score", min_value=0, max_value=1),
        quality.ExpectScoreToBeWeightedMean(
            column_list=["score", "labels", "descriptors"], row_condition=OK, tolerance=limits.score_tolerance,
            description="the score is the confidence-weighted mean of the labels",
        ),
        quality.ExpectLabelsToBeBalanced(
            min_share=limits.label_share_min, max_share=limits.label_share_max,
            description="the judge does not say the same of everything", **balance,
        ),
        quality.ExpectLabelsToBeBalanced(
            min_share=limits.label_share_min_warning, max_share=limits.label_share_max_warning,
            description="labels are not lopsided", severity=WARNING, **balance,
        ),
    ]


def _embeddings(limits: Thresholds, *, joint: bool, few: bool) -> Checks:
    severity = WARNING if few else CRITICAL
    checks = [*schema("embeddings"), gxe.ExpectColumnValuesToBeUnique(column="item_id"), _known()]
    repeated: dict[str, dict[str, Any]] = {
        "text": {"mostly": 1 - limits.duplicate_text_share, "severity": severity},
        "image": {"mostly": 1 - limits.duplicate_image_share_warning, "severity": WARNING},
    }
    for column in ("text", "image"):
        checks += [
            embeddings.ExpectEmbeddingToBeFinite(column=column, description=f"{column} vectors are finite numbers"),
            embeddings.ExpectEmbeddingsToHaveOneDimension(
                column=column, description=f"{column} vectors are equally long"
            ),
            embeddings.ExpectEmbeddingToHaveUnitNorm(
                column=column, tolerance=limits.norm_tolerance, description=f"{column} vectors have norm 1"
            ),
            embeddings.ExpectEmbeddingsToBeDistinct(
                column=column, description=f"{column} vectors tell items apart", **repeated[column]
            ),
        ]
    if joint:
        return [*checks, gxe.ExpectColumnValuesToBeNull(column="image")]
    return [
        *checks,
        gxe.ExpectColumnValuesToNotBeNull(
            column="image", row_condition=WITH_PHOTO, mostly=1 - limits.lost_image_share, severity=severity
        ),
    ]


def _sids(limits: Thresholds, codebook_size: int | None) -> Checks:
    return [
        *schema("sids"),
        gxe.ExpectColumnValuesToBeUnique(column="item_id"),
        _known(),
        sids.ExpectCodesToBeInRange(
            column="codes", codebook_size=codebook_size or limits.codebook_max,
            description=f"codes are at least 0 and below {codebook_size or limits.codebook_max}",
        ),
        sids.ExpectSidsToHaveOneDepth(column="codes", description="all SIDs have the same number of levels"),
        gxe.ExpectColumnValuesToBeUnique(column="sid"),
        sids.ExpectSidToEqualCodes(column_A="sid", column_B="codes", description="a SID is its codes joined by _"),
        rows.ExpectColumnValuesToAgree(column="tokenizer_version", description="one tokenizer made all SIDs"),
        gxe.ExpectColumnValuesToBeInSet(
            column="moved", value_set=[False], mostly=1 - limits.moved_share_warning, severity=WARNING
        ),
        sids.ExpectLevelsToBeUtilised(
            column="codes", codebook_size=codebook_size, min_utilisation=limits.utilisation_min,
            description=f"every level uses at least {limits.utilisation_min:.0%} of its codes",
        ),
        sids.ExpectLevelsToBeUtilised(
            column="codes", codebook_size=codebook_size, min_utilisation=limits.utilisation_min_warning,
            description=f"every level uses at least {limits.utilisation_min_warning:.0%} of its codes",
            severity=WARNING,
        ),
    ]

"""The steps from a source to gated SIDs, which every pipeline that learns begins with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.structures import ResourceSpec

from components.caption.component import caption
from components.embed.component import embed
from components.gates.component import (
    gate_captions,
    gate_catalogue,
    gate_embeddings,
    gate_intents,
    gate_sids,
)
from components.ingest.component import fill_catalogue, ingest
from components.intents.component import mine_intents
from components.quality.component import label_quality
from components.relate.component import relate_items
from components.tokenize.component import fit_tokenizer

# What a step asks for and may use at most.
LIGHT = {"cpu": ("500m", "1"), "memory": ("1G", "4G")}
HEAVY = {"cpu": ("2", "8"), "memory": ("8G", "32G")}


@dataclass(frozen=True)
class Enriched:
    """Artifacts of an enriched catalogue; `checked` is the gate that passed them, `stats` what each step said."""

    catalogue: Any
    items: Any
    splits: Any
    captions: Any
    intents: Any
    quality: Any
    embeddings: Any
    checked: PipelineTask
    stats: dict[str, Any]


@dataclass(frozen=True)
class Tokenized:
    """Artifacts of a tokenized catalogue."""

    tokenizer: Any
    sids: Any
    checked: PipelineTask
    stats: dict[str, Any]


def enrich(ingest_settings: Any, enrichment_settings: Any, home: Any, source_digest: Any, shards: Any) -> Enriched:
    """Ingest, caption, mine intents, label, embed; each table is gated before the next step reads it.

    Args:
        shards: parts of the catalogue to ask models about side by side, as "0/2" and "1/2"; none asks in one step.
    """
    source = light(ingest(settings=ingest_settings, home=home, source_digest=source_digest))
    catalogue, items = source.outputs["catalogue"], source.outputs["items"]
    catalogue_ok = gated_catalogue(catalogue, ingest_settings, home)

    asked = {"items": items, "settings": enrichment_settings, "home": home}
    captioned = fanned_out(caption, shards, catalogue_ok, catalogue=catalogue, **asked)
    captions = captioned.outputs["captions"]
    captions_ok = light(gate_captions(items=items, captions=captions))
    mined = fanned_out(mine_intents, shards, captions_ok, captions=captions, **asked)
    intents = mined.outputs["intents"]
    labelled = fanned_out(label_quality, shards, mined, captions=captions, intents=intents, **asked)
    quality = labelled.outputs["quality"]
    intents_ok = light(gate_intents(items=items, captions=captions, intents=intents, quality=quality))
    embedded = fanned_out(embed, shards, intents_ok, catalogue=catalogue, captions=captions, intents=intents, **asked)
    embeddings = embedded.outputs["embeddings"]
    embeddings_ok = light(gate_embeddings(items=items, embeddings=embeddings, settings=enrichment_settings))
    stats = {
        "ingest": source,
        "gate_catalogue": catalogue_ok,
        "caption": captioned,
        "gate_captions": captions_ok,
        "intents": mined,
        "quality": labelled,
        "gate_intents": intents_ok,
        "embed": embedded,
        "gate_embeddings": embeddings_ok,
    }
    return Enriched(
        catalogue,
        items,
        source.outputs["splits"],
        captions,
        intents,
        quality,
        embeddings,
        embeddings_ok,
        {name: task.outputs["stats"] for name, task in stats.items()},
    )


def gated_catalogue(catalogue: Any, ingest_settings: Any, home: Any) -> PipelineTask:
    """The gate of what was ingested; what it passes also goes into the SQL catalogue, for which no step waits."""
    passed = light(gate_catalogue(catalogue=catalogue))
    filling = fill_catalogue(catalogue=catalogue, settings=ingest_settings, home=home)
    # A run over another source may have changed the database since: never cached.
    light(filling.after(passed)).set_caching_options(False)
    return passed


def tokenize(enriched: Enriched, relate_settings: Any, tokenizer_settings: Any, home: Any, work: Any) -> Tokenized:
    """Relate items if asked, fit the tokenizer on gated embeddings, and gate its SIDs."""
    relating = relate_items(
        items=enriched.items, intents=enriched.intents, splits=enriched.splits, embeddings=enriched.embeddings,
        settings=relate_settings, home=home,
    )  # fmt: skip
    made = heavy(relating.after(enriched.checked)).outputs
    fitting = fit_tokenizer(
        embeddings=made["related"], grounding=made["grounding"], settings=tokenizer_settings, work=work
    )
    fitted = heavy(fitting)
    tokenizer, sids = fitted.outputs["tokenizer"], fitted.outputs["sids"]
    sids_ok = light(gate_sids(items=enriched.items, sids=sids, tokenizer=tokenizer))
    stats = {"relate": made["stats"], "tokenizer": fitted.outputs["stats"], "gate_sids": sids_ok.outputs["stats"]}
    return Tokenized(tokenizer, sids, sids_ok, stats)


def fanned_out(step: Callable[..., PipelineTask], shards: Any, after: PipelineTask, **given: Any) -> PipelineTask:
    """A step over the whole table, and before it the same step over each shard.

    What the shards asked is in the ledger then: the whole step asks what failed there, and writes the table.
    """
    whole = heavy(step(**given))
    with dsl.ParallelFor(shards, name=f"{whole.name} in shards") as shard:
        part = heavy(step(shard=shard, **given).after(after))
    return whole.after(after, part)


def light(task: PipelineTask) -> PipelineTask:
    """A step that reads and writes tables."""
    return _sized(task, LIGHT)


def heavy(task: PipelineTask) -> PipelineTask:
    """A step that runs a model."""
    return _sized(task, HEAVY)


def _sized(task: PipelineTask, size: dict[str, tuple[str, str]]) -> PipelineTask:
    # In one piece: each of the task's own setters walks the whole call stack, which takes a tenth of a second.
    (cpu, most_cpu), (memory, most_memory) = size["cpu"], size["memory"]
    task.container_spec.resources = ResourceSpec(cpu, most_cpu, memory, most_memory)
    return task.set_caching_options(True)

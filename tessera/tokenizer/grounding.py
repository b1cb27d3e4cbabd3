"""Grounding: items, their words, the world's words and each other in one space.

SIGMA's multi-view contrastive training. An item's own vector is drawn to three views of it: the embedding of its text;
the embedding of what the world says of it (category, brand, intents); and the vector of an item bought next to it.
Tokenizers that read the grounded vectors in place of the raw ones, and each item's own token in a hybrid SID, start
from that space.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

from tessera.errors import InputError
from tessera.files import replacing
from tessera.schema import read_table
from tessera.tokenizer.fusion import Balance, Fusion
from tessera.tokenizer.inputs import Inputs, read_inputs

WIDTH, HIDDEN, TEMPERATURE = 128, 256, 0.07
EPOCHS, BATCH, LEARNING_RATE = 30, 256, 1e-3


@dataclass(frozen=True)
class Views:
    """What grounding learns from; rows are items in order of item_id.

    text and knowledge [N, Dt]: embeddings of the item's text and of its knowledge text; bought [P, 2]: rows of items
    bought one after the other in training.
    """

    text: NDArray[np.float32]
    knowledge: NDArray[np.float32]
    bought: NDArray[np.int64]


class Grounding(nn.Module):
    """Item encoder (CMSA's fusion and a hidden layer) and a linear map for each text view; all give unit vectors."""

    def __init__(self, text_dim: int, image_dim: int, width: int = WIDTH) -> None:
        super().__init__()
        self.balance = Balance(text_dim, image_dim)
        self.fusion = Fusion(text_dim, image_dim, HIDDEN // 2, HIDDEN)
        self.item = nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, width))
        self.text, self.knowledge = nn.Linear(text_dim, width), nn.Linear(text_dim, width)

    def forward(self, x: Tensor, has_image: Tensor) -> Tensor:
        """Balanced [text; image] [N, Dt + Di], has_image [N] -> grounded unit vectors [N, D]."""
        return normalize(self.item(self.fusion(x, has_image)), dim=1)

    @torch.no_grad()
    def vectors(self, inputs: Inputs) -> NDArray[np.float32]:
        """Grounded vectors [N, D] of items, of new ones too."""
        text, image, has_image = (torch.from_numpy(a) for a in (inputs.text, inputs.image, inputs.has_image))
        if image.shape[1] == 0:
            image = torch.zeros(len(text), self.balance.image_dim)
        return self.eval()(self.balance(text, image, has_image), has_image).numpy()

    def ground(self, inputs: Inputs) -> Inputs:
        """The same items with their grounded vectors in place of text and image."""
        vectors = self.vectors(inputs)
        return Inputs(inputs.item_ids, vectors, np.zeros((len(vectors), 0), np.float32), np.zeros(len(vectors), bool))

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, atomically: all that later items need."""
        with replacing(path) as temporary:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "Grounding":
        """Read what `save` wrote; the weights tell their widths.

        Raises:
            InputError: missing, damaged, or of another model.
        """
        try:
            weights = load_file(path)
            text_dim, image_dim = len(weights["balance.text_mean"]), len(weights["balance.image_mean"])
            model = cls(text_dim, image_dim, len(weights["text.weight"]))
            model.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} does not hold grounding's weights ({reason}); ground the items again.") from None
        return model.eval().requires_grad_(False)


def info_nce(a: Tensor, b: Tensor, alike: Tensor | None = None, temperature: float = TEMPERATURE) -> Tensor:
    """Symmetric InfoNCE: L = -1/2 mean_i [ln softmax_j(a_i.b_j / t)_i + ln softmax_j(b_i.a_j / t)_i].

    van den Oord et al. (arXiv 1807.03748), equation 4, in both directions as CLIP has it.

    Args:
        a, b: [B, D] unit rows, a_i and b_i of a pair.
        alike: [B, B] bool, where a_i and b_j are no negatives of each other; pairs, on the diagonal, stay pairs.
    """
    logits = a @ b.T / temperature
    if alike is not None:
        logits = logits.masked_fill(alike & ~torch.eye(len(a), dtype=torch.bool, device=a.device), -torch.inf)
    own = torch.arange(len(a), device=a.device)
    return 0.5 * (cross_entropy(logits, own) + cross_entropy(logits.T, own))


def run(
    embeddings: Path,
    knowledge: Path,
    splits: Path,
    weights: Path,
    seed: int,
    *,
    use_images: bool = True,
) -> dict[str, Any]:
    """Ground a catalogue. Only training purchases are read; with none, the other two views remain.

    The same inputs and seed give the same files on the same machine.

    Args:
        knowledge: an `embeddings` table of what the world says of the items (tessera.enrichment.embedding).
        weights: file to write the model to, which grounds these items and later ones (`Grounding.load`).

    Returns:
        items, pairs (of items bought one after the other), curve (a record an epoch), seconds.

    Raises:
        InputError: an unusable table, or an item that `knowledge` or the split does not know alike.
    """
    started = time.monotonic()
    inputs = read_inputs(read_table("embeddings", embeddings), use_images=use_images, origin=str(embeddings))
    world = read_inputs(read_table("embeddings", knowledge), use_images=False, origin=str(knowledge))
    if world.item_ids != inputs.item_ids:
        raise InputError(f"{knowledge} and {embeddings} are not of the same items; embed one catalogue for both.")
    if world.text.shape[1] != inputs.text.shape[1]:
        raise InputError(f"{knowledge} and {embeddings} have vectors of different widths; embed both with one encoder.")
    bought = bought_next(_histories(splits, inputs.item_ids))
    model, curve = fit(inputs, Views(inputs.text, world.text, bought), seed)
    model.save(weights)
    seconds = round(time.monotonic() - started, 3)
    return {"items": len(inputs.item_ids), "pairs": len(bought), "curve": curve, "seconds": seconds}


def _histories(splits: Path, item_ids: Sequence[str]) -> list[list[int]]:
    """Training histories as rows of items, in the order of the split."""
    row = {item: number for number, item in enumerate(item_ids)}
    histories = read_table("splits", splits)["train"].to_pylist()
    if unknown := next((item for history in histories for item in history if item not in row), None):
        raise InputError(f"{splits}: item '{unknown}' has no embedding; embed the catalogue that was split.")
    return [[row[item] for item in history] for history in histories]


def bought_next(histories: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Pairs [P, 2] of different items that follow one another in a training history (rows of items)."""
    pairs = [pair for history in histories for pair in pairwise(history) if pair[0] != pair[1]]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def fit(inputs: Inputs, views: Views, seed: int, epochs: int = EPOCHS) -> tuple[Grounding, list[Mapping[str, Any]]]:
    """Train on L = L_text + L_knowledge + L_bought, each an `info_nce` of items against that view.

    The same inputs and seed give the same model on the same machine.

    Returns:
        the model and its curve, a record an epoch: epoch, text, knowledge, bought.

    Raises:
        InputError: views of another number of items.
    """
    items = len(inputs.item_ids)
    if len(views.text) != items or len(views.knowledge) != items:
        raise InputError(f"the views are not of the {items} items that are to be grounded; embed the same catalogue.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Grounding(inputs.text.shape[1], inputs.image.shape[1])
    generator = torch.Generator().manual_seed(seed)
    text, image, has_image = (torch.from_numpy(a) for a in (inputs.text, inputs.image, inputs.has_image))
    x = model.balance.fit(text, image, has_image)(text, image, has_image)
    said, world = (centred(torch.from_numpy(view)) for view in (views.text, views.knowledge))
    # Items about which the text, or the world, says the same are no negatives of each other.
    same_text, same_world = (
        torch.unique(torch.from_numpy(view), dim=0, return_inverse=True)[1] for view in (views.text, views.knowledge)
    )
    bought = torch.from_numpy(views.bought)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    curve: list[Mapping[str, Any]] = []
    for epoch in tqdm(range(epochs), desc="Grounding", unit="epoch"):
        sums = torch.zeros(3)
        batches = torch.randperm(items, generator=generator).split(BATCH)
        for rows in batches:
            own = model(x[rows], has_image[rows])
            losses = [
                info_nce(own, normalize(model.text(said[rows]), dim=1), _equal(same_text[rows])),
                info_nce(own, normalize(model.knowledge(world[rows]), dim=1), _equal(same_world[rows])),
                _bought_loss(model, x, has_image, bought, generator),
            ]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimizer.step()
            sums += torch.stack(losses).detach() / len(batches)
        means = [round(value, 6) for value in sums.tolist()]
        curve.append({"epoch": epoch + 1, **dict(zip(("text", "knowledge", "bought"), means, strict=True))})
    return model, curve


def _bought_loss(model: Grounding, x: Tensor, has_image: Tensor, bought: Tensor, generator: torch.Generator) -> Tensor:
    """InfoNCE of pairs drawn from those bought together; 0 where nothing was."""
    if not len(bought):
        return x.new_zeros(())
    first, second = bought[torch.randint(len(bought), (min(BATCH, len(bought)),), generator=generator)].T
    a, b = (model(x[rows], has_image[rows]) for rows in (first, second))
    return info_nce(a, b, no_negatives(first, second))


def no_negatives(first: Tensor, second: Tensor) -> Tensor:
    """[B, B] bool of pairs of items: first_i and second_j are one item, or some row has them (or may) as a pair."""
    return (first[:, None] == second) | _equal(first) | _equal(second)


def _equal(of: Tensor) -> Tensor:
    return of[:, None] == of


def centred(x: Tensor) -> Tensor:
    """Unit rows less their mean, unit again, scaled to components of about 1; x [N, D]."""
    unit = normalize(x, dim=1)
    return normalize(unit - unit.mean(0), dim=1) * x.shape[1] ** 0.5

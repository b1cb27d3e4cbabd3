"""Supervised fine-tuning: next-SID prediction, alone or among other tasks (tessera.policy.mixture).

One autoregressive loss, the mean over all target positions of all tasks, no weights. A code's term is
-log p(c_l | prompt, c_<l), the softmax over the codes of the target's level, which is also how the decoder scores
(tessera.decoding.search); an item's own token (hybrid SIDs) has -log p(item | prompt), without its prefix, so that tied
rows of items learn from each other what is bought together; a piece of text has the softmax over the whole vocabulary.
In "next" every item of every training history is a target.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tessera.config import PolicySettings
from tessera.policy import checkpoints, distributed
from tessera.policy.backbone import Backbone, add_dropout
from tessera.policy.checkpoints import Progress
from tessera.policy.data import IGNORE, TEXT, Packed, pack_examples, sequences, sid_rows, windows
from tessera.policy.mixture import Mixture

log = logging.getLogger(__name__)


def sid_loss(backbone: Backbone, batch: Packed, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the batch's target positions, each code over its own level's codes."""
    terms, _ = target_losses(backbone, batch, label_smoothing)
    return terms.sum() / len(terms)


def target_losses(backbone: Backbone, batch: Packed, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy [targets] of every target position, and the number of the task [targets] that it is of.

    Codes come first, level by level, then text. Smoothing spreads a share over the codes of the level, not over text.
    """
    model = backbone.model
    same = batch.segments[:, :, None] == batch.segments[:, None, :]
    visible = same & torch.ones_like(same[0]).tril()
    dtype = model.get_output_embeddings().weight.dtype
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min).unsqueeze(1)
    hidden = model.get_decoder()(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    head = model.get_output_embeddings().weight
    wanted = batch.targets != IGNORE
    terms, tasks = [], []
    texts = [TEXT] if (wanted & (batch.levels == TEXT)).any() else []
    last = len(backbone.sid_tokens) - 1
    for level in [*range(last + 1), *texts]:
        here = wanted & (batch.levels == level)
        asked_at = here.roll(-last, 1) if backbone.hybrid and level == last else here  # in front of the prefix
        rows, smoothing = (head, 0.0) if level == TEXT else (head[backbone.level_tokens(level)], label_smoothing)
        logits = hidden[asked_at] @ rows.to(hidden.dtype).T
        terms.append(F.cross_entropy(logits.float(), batch.targets[here], reduction="none", label_smoothing=smoothing))
        tasks.append(batch.tasks[here])
    return torch.cat(terms), torch.cat(tasks)


def train(
    backbone: Backbone,
    histories: Sequence[np.ndarray],
    codes: np.ndarray,
    validate: Callable[[], dict[str, float]],
    settings: PolicySettings,
    seed: int,
    work: Path,
    fingerprint: str,
    mixture: Mixture | None = None,
) -> Progress:
    """Train until the epochs are used up or NDCG@10 stops rising; leaves the best weights in the model.

    Args:
        histories: item numbers in time order, one array a user.
        codes: [items, levels] SID of each item number.
        validate: measures the model as it is; its "ndcg@10" decides which weights are kept.
        work: folder of the checkpoints. A killed run that is started again with the same `fingerprint` goes on from
            the last one and ends with the same weights, because each epoch draws from a generator of its own.
        mixture: the tasks, whose losses then join the curve as "loss/<task>"; None trains on "next" alone.

    Under torchrun each process computes its share of every step's rows (tessera.policy.distributed); the first alone
    validates and writes.
    """
    model, device = backbone.model, backbone.model.device
    if settings.backbone == "tiny":
        add_dropout(model, settings.dropout)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    progress = checkpoints.resumed(work, fingerprint, trained, optimizer)
    sid_tokens = backbone.sid_tokens.numpy(force=True)
    alone = sequences(windows(histories, settings.max_history + 1), sid_rows(codes, sid_tokens), backbone.bos)
    tasks = mixture.tasks if mixture else ("next",)
    first = distributed.first()
    bar = tqdm(total=settings.epochs, initial=progress.epoch, desc="train policy", unit="epoch", disable=not first)
    while progress.epoch < settings.epochs and not _stale(progress, settings):
        torch.manual_seed(seed * 100_003 + progress.epoch + distributed.APART * distributed.rank())
        rng = np.random.default_rng([seed, progress.epoch])
        examples = mixture.draw(rng) if mixture else alone
        row_length = max((settings.max_history + 1) * codes.shape[1] + 1, int(examples.tokens.lengths.max()))
        packed = pack_examples(examples.take(rng.permutation(len(examples))), sid_tokens, row_length)
        rows_a_step = max(1, settings.batch_tokens // row_length)
        loss, losses = _epoch(backbone, packed, optimizer, settings, progress.epoch, rows_a_step)
        progress.epoch += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", best=f"{max(progress.best, 0):.4f}")
        if progress.epoch % settings.validate_every and progress.epoch < settings.epochs:
            continue
        model.eval()
        measured = distributed.from_first(validate)
        progress.curve.append({"epoch": progress.epoch, "train_loss": loss, **_named(losses, tasks), **measured})
        if measured["ndcg@10"] > progress.best:
            progress.best, progress.best_epoch = measured["ndcg@10"], progress.epoch
            if first:
                checkpoints.write_best(work, progress, trained)
        if first:
            checkpoints.write(work, progress, trained, optimizer)
    bar.close()
    if first and progress.best_epoch:
        checkpoints.load_best(work, progress, trained)
    distributed.copy_from_first(trained.values())
    model.eval()
    log.info("policy trained: epoch %d of %d was best, on %s", progress.best_epoch, progress.epoch, device)
    return progress


def _stale(progress: Progress, settings: PolicySettings) -> bool:
    return progress.epoch - progress.best_epoch >= settings.patience * settings.validate_every and progress.best >= 0


def _epoch(
    backbone: Backbone,
    packed: Packed,
    optimizer: torch.optim.Optimizer,
    settings: PolicySettings,
    epoch: int,
    rows: int,
) -> tuple[float, list[float]]:
    """One pass over the rows; the mean loss of its steps, and of each task the mean over its targets.

    A step's loss is the mean over the targets of all its rows, whichever process computes them.
    """
    model, device = backbone.model, backbone.model.device
    model.train()
    steps = -(-len(packed.tokens) // rows)
    mixed = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    losses, count = [], int(packed.tasks.max()) + 1
    of_task = torch.zeros(2, count, dtype=torch.float64, device=device)
    for step in range(steps):
        whole = packed.targets[step * rows : (step + 1) * rows]
        mine, part = distributed.share(len(whole))
        chosen = torch.from_numpy(step * rows + mine)
        batch = Packed(*(getattr(packed, name)[chosen].to(device) for name in Packed.__dataclass_fields__))
        rate = settings.learning_rate * _schedule(epoch + step / steps, settings.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with mixed:
            terms, tasks = target_losses(backbone, batch, settings.label_smoothing)
            loss = terms.sum() / int((whole != IGNORE).sum()) * float(part > 0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(p for g in optimizer.param_groups for p in g["params"])
        torch.nn.utils.clip_grad_norm_((p for g in optimizer.param_groups for p in g["params"]), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        member = F.one_hot(tasks, count).double()
        of_task += torch.stack([terms.detach().double() @ member, member.sum(0)]) * float(part > 0)
    of_task = distributed.total(of_task)
    return float(distributed.total(torch.stack(losses)).mean()), (of_task[0] / of_task[1]).tolist()


def _named(losses: Sequence[float], tasks: Sequence[str]) -> dict[str, float]:
    """Each task's loss for the curve; one task alone has no need of it."""
    return {f"loss/{task}": loss for task, loss in zip(tasks, losses, strict=True)} if len(tasks) > 1 else {}


def _schedule(epoch: float, epochs: int) -> float:
    """Linear warm-up over the first 4% of the epochs, then a half cosine down to 5%."""
    done = epoch / epochs
    if done < 0.04:
        return (done + 1e-3) / 0.041
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (done - 0.04) / 0.96)))

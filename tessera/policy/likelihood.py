"""Log-probabilities of many SIDs after one prompt, with gradients: the prompt is computed once for its whole group."""

from typing import Any

import torch
from torch import Tensor

from tessera.decoding.forward import additive
from tessera.policy.backbone import Backbone


def log_probabilities(backbone: Backbone, tokens: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
    """log p(c_l | prompt, c_<l) of each code, each a softmax over the codes of its level alone.

    What supervised training raises (tessera.policy.sft), so an item's own token (hybrid SIDs) has log p(item | prompt).
    One forward a prompt: its tokens, then the codes of all its SIDs as branches that see the prompt and themselves but
    not each other.

    Args:
        tokens, mask: [batch, T] prompts padded on the left, False on padding; codes: [batch, G, L] int64.

    Returns:
        [batch, G, L] float32.
    """
    width = tokens.shape[1]
    group, depth = codes.shape[1:]
    model: Any = backbone.model
    head, device = model.get_output_embeddings().weight, tokens.device
    sid_tokens = backbone.sid_tokens.to(device)
    read = depth - 1 - backbone.hybrid  # the last code is only ever predicted; an own token, straight from the prompt
    level = torch.arange(read, device=device)
    taken = sid_tokens[level, codes[:, :, :read]].flatten(1)
    level, owner = level.repeat(group), torch.arange(group, device=device).repeat_interleave(read)
    hidden = model.get_decoder()(
        input_ids=torch.cat([tokens, taken], dim=1),
        position_ids=torch.cat([(mask.long().cumsum(1) - 1).clamp(min=0), mask.sum(1)[:, None] + level], dim=1),
        attention_mask=additive(_visible(mask, (owner[:, None] == owner) & (level[:, None] >= level)), head.dtype),
        use_cache=False,
    ).last_hidden_state
    first = hidden[:, width - 1, None, None].expand(-1, group, -1, -1)
    states = torch.cat([first, hidden[:, width:].unflatten(1, (group, read)), *[first] * backbone.hybrid], dim=2)
    rows = [head[backbone.level_tokens(one).to(device)].to(states.dtype) for one in range(depth)]
    logp = [(states[:, :, one] @ rows[one].T).float().log_softmax(-1) for one in range(depth)]
    return torch.stack([logp[one].gather(-1, codes[:, :, one, None]) for one in range(depth)], dim=2).squeeze(-1)


def _visible(mask: Tensor, branches: Tensor) -> Tensor:
    """[batch, T + n, T + n] bool: who sees whom, for prompts [batch, T] and branches [n, n] behind them."""
    (batch, width), new = mask.shape, len(branches)
    visible = mask.new_zeros(batch, width + new, width + new)
    visible[:, :, :width] = mask[:, None, :]
    visible[:, :width, :width] &= mask.new_ones(width, width).tril()
    visible[:, width:, width:] = branches
    return visible

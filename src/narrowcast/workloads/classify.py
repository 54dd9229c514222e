"""Train a small image classifier: plain PyTorch, deterministic in its seed."""

import torch
import torch.nn.functional as F
from torch import nn

from narrowcast.workloads.images import Images


def fit(
    model: nn.Module, images: Images, *, epochs: int, rate: float = 2e-3, batch: int = 64, seed: int = 0,
    freeze_norms: bool = False,
) -> list[float]:  # fmt: skip
    """Train the parameters that require gradients with AdamW and a cosine schedule; return the loss of each epoch.

    Args:
        model: ``[N, C, H, W] -> [N, classes]``; left in evaluation mode.
        images: the training set.
        epochs, rate, batch: how long, how fast, in which portions.
        seed: of the order.
        freeze_norms: leave the running statistics of batch normalisation as they are, and use them.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses = []
    model.train()
    for module in model.modules():
        if freeze_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    for _ in range(epochs):
        total = 0.0
        for pixels, labels in images.batches(batch, generator):
            loss = F.cross_entropy(model(pixels), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        losses.append(total / len(images))
    model.eval()
    return losses

"""The losses of `jaxcolor.tasks` in PyTorch. Importing it needs PyTorch. Arrays are (B, C, H, W)."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from jaxcolor import color
from jaxcolor.tasks.color_classes import class_centers


def color_error(ab: torch.Tensor, target: torch.Tensor, task: SimpleNamespace, activation: str) -> torch.Tensor:
    """As `tasks.losses.color_error`, the mean of the batch: both (B, 2, H, W) in the network's range -> a scalar."""
    scale, offset = color.AB_RANGE[activation]
    if task.error == 'squared' and not task.chroma_weight:
        return F.mse_loss(ab, target, reduction='sum') / (len(ab) if task.reduction == 'sum' else ab.numel())
    if task.error == 'huber':
        each = 2 * F.huber_loss(ab, target, reduction='none', delta=task.huber_delta / scale)
    else:
        each = F.l1_loss(ab, target, reduction='none') if task.error == 'absolute' else (ab - target).square()
    if task.chroma_weight:
        chroma = torch.linalg.vector_norm(target * scale + offset, dim=1, keepdim=True)
        each = each * (1 + task.chroma_weight / 100 * chroma)
    return each.sum() / len(ab) if task.reduction == 'sum' else each.mean()


class ColorClasses(nn.Module):
    """As `tasks.color_classes`: its loss, its prior of the classes, which the loss updates, and its decoding."""

    def __init__(self, classes: int, task: SimpleNamespace) -> None:
        """task: the config's section of that name."""
        super().__init__()
        self.task = task
        self.register_buffer('centers', torch.from_numpy(class_centers(classes)))  # (Q, 2)
        self.register_buffer('share', torch.full((classes,), 1 / classes))
        self.register_buffer('steps', torch.zeros(()))

    def forward(self, logits: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
        """Logits (B, Q, h, w) and the true a*b* (B, 2, H, W) -> the loss, a scalar."""
        soft = self._soft_classes(F.avg_pool2d(ab, ab.shape[-1] // logits.shape[-1]))  # (B, h, w, Q)
        each = -(soft * F.log_softmax(logits.permute(0, 2, 3, 1).float(), dim=-1)).sum(dim=-1)
        if self.task.rebalance != 1:  # else all weights are 1
            weights = self._weights(self.task.rebalance)
            weights = weights / (self.share * weights).sum()  # 1 in the mean over pixels
            each = weights[soft.argmax(dim=-1)] * each
        loss = each.mean()
        with torch.no_grad():
            self.share += (soft.mean(dim=(0, 1, 2)) - self.share) / (self.steps + 2)
            self.steps += 1
        return loss

    def decode(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits (B, Q, h, w) -> a*b* (B, 2, *size): the annealed mean."""
        weights = self._weights(self.task.inference_rebalance)
        likelihood = F.softmax((logits.permute(0, 2, 3, 1).float() + weights.log()) / self.task.temperature, dim=-1)
        with torch.autocast(logits.device.type, enabled=False):
            ab = likelihood @ self.centers * self.task.chroma_gain
        return F.interpolate(ab.permute(0, 3, 1, 2), size=size, mode='bilinear')

    def _weights(self, lam):
        return 1 / ((1 - lam) * self.share + lam / len(self.share))

    def _soft_classes(self, ab):
        with torch.autocast(ab.device.type, enabled=False):
            nearness = ab.permute(0, 2, 3, 1) @ (2 * self.centers.T) - self.centers.square().sum(dim=1)
        return F.softmax(nearness / (2 * self.task.sigma**2), dim=-1)

"""BatchNorm whose statistics are those of the batches of all processes together.

On GPUs timm's converter and torch's kernels are used. They do not run on a CPU, so there the same
is computed from differentiable sums over the processes. Parameter names stay those of BatchNorm:
checkpoints do not tell the difference.
"""

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def synchronise_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """The same network with BatchNorm over all processes.

    Args:
        model: changed in place where possible; its parameters stay the same objects.
        device: where it will run.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncBatchNorm2d
        elif type(module) is BatchNormAct2d:
            module.__class__ = _SyncBatchNormAct2d
    return model


class _SyncBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input) if self.training else super().forward(input)


class _SyncBatchNormAct2d(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self.act(self.drop(_batch_norm(self, x)))


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalises N x C x H x W by the statistics of all processes and updates the running ones."""
    with torch.autocast(x.device.type, enabled=False):
        values = x.float()
        own = torch.cat([values.sum(dim=(0, 2, 3)), values.new_tensor([x[:, 0].numel()])])
        total = all_reduce(own)
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean[:, None, None]
        var = all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        _update_running(norm, mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        result = centred * (var + norm.eps).rsqrt()[:, None, None]
        if norm.affine:
            result = result * norm.weight[:, None, None] + norm.bias[:, None, None]
    return result.to(x.dtype)


def _update_running(norm: nn.BatchNorm2d, mean: Tensor, unbiased_var: Tensor) -> None:
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(unbiased_var, share)

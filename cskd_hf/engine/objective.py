"""The module that is trained: one `forward(batch)` per step, whatever the method does inside."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cskd_hf.batch import NUM_VIEWS, Batch, Views
from cskd_hf.data.normalize import normalize
from cskd_hf.errors import UserError, is_out_of_device_memory, is_out_of_host_memory, one_line
from cskd_hf.methods.base import Method
from cskd_hf.models.freezing import frozen_norms
from cskd_hf.models.memory import memories
from cskd_hf.recipe.sections import TransformSection

# Raised by a forward for images that the model does not take, or for lack of memory.
_FAULTS = (AssertionError, MemoryError, RuntimeError, ValueError, IndexError)


class Objective(nn.Module):
    """A method applied to its module.

    Accelerate prepares it and torch compiles it: DDP sees exactly one forward per step however many the method makes,
    so autocast and gradient accumulation need no special case.

    Args:
        method: hyper-parameters and mathematics.
        module: what `method.build` returned; holds every parameter and state.
        mean, std: of the channels in [0, 1], which uint8 images need; float images are taken as normalised.
        channels_last: memory format of the normalised images.

    Raises:
        UserError: mean or std outside [0, 1]; at a forward, no `Batch`, uint8 images without mean and std, or images
            that are not in pairs, of one class or, for some methods, of one image. On an accelerator, where reading the
            labels would be a device sync, the loss is NaN instead if only they show it.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import CSKD, Batch, Objective
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> objective = Objective(CSKD(), model, mean=(0.5,) * 3, std=(0.2,) * 3)
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)  # 4 anchors, then their 4 partners
        >>> pairs = Batch(images, target=torch.tensor([0, 1] * 4), index=torch.arange(8))
        >>> objective(pairs)["loss"].backward()
    """

    def __init__(
        self,
        method: Method,
        module: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.mean: Tensor | None
        self.std: Tensor | None
        self.method, self.module, self.channels_last = method, module, channels_last
        # Not saved with the weights: the recipe has them.
        for name, values in (("mean", mean), ("std", std)):
            channels = None if values is None else torch.tensor(values).view(1, -1, 1, 1)
            if values is not None and not 0 <= min(values) <= max(values) <= 1:
                raise UserError(f"{name}: read {values}; write numbers from 0 to 1, of pixels divided by 255")
            self.register_buffer(name, channels, persistent=False)
        # DDP broadcasts rank 0's buffers; a sharded memory belongs to its own rank.
        self._ddp_params_and_buffers_to_ignore = [
            f"module.{name}.{key}" if name else f"module.{key}"
            for name, memory in memories(module).items()
            for key, _ in memory.named_buffers()
        ]

    def train(self, mode: bool = True) -> Objective:
        """Train or eval mode; frozen BatchNorm layers stay in eval mode, where they use their running statistics."""
        super().train(mode)
        for norm in frozen_norms(self.module):
            norm.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What `Method.forward_loss` returns, with 'output' detached so that nothing keeps the graph alive."""
        if not isinstance(batch, Batch):
            raise UserError(
                f"batch: its type is {type(batch).__name__}; write Batch(images, target, index), or load with "
                "DataLoader(…, collate_fn=PairingCollator())"
            )
        if batch.images.dtype == torch.uint8:
            if self.mean is None or self.std is None:
                raise UserError("mean, std: none, but the images are uint8; write Objective(method, module, mean, std)")
            images = normalize(batch.images, self.mean, self.std, self.channels_last)
            # Not `_replace`, with all fields: torch 2.11 loses defaults where it resumes after a graph break.
            batch = Batch(images, batch.target, batch.index, batch.skipped)
        in_pairs = _in_pairs(batch, self.method.views)
        result = self.method.forward_loss(self.module, batch)
        loss = result["loss"] if in_pairs is None else result["loss"].where(in_pairs, torch.nan)
        return {**result, "loss": loss, "output": result["output"].detach()}


def _in_pairs(batch: Batch, views: Views) -> Tensor | None:
    """None if the views of each sample belong together or need not; a scalar bool where reading it would sync.

    Views of one class have the same label, views of one image the same index.

    Raises:
        UserError: they need and do not: see `Objective`.
    """
    num_views, target = NUM_VIEWS[views], batch.target
    if views in ("single", "last_update") or target.is_floating_point():
        return None
    if len(target) % num_views == 0:
        by_view = (batch.index if views == "same_image" else target).reshape(num_views, -1)
        in_pairs = (by_view == by_view[0]).all()
        if target.device.type != "cpu" or torch.compiler.is_compiling():
            return in_pairs
        if in_pairs:
            return None
    sampler = "ImageSampler(…, views=2)" if views == "same_image" else "ClassPairSampler"
    raise UserError(
        f"batch: {len(target)} images that are not {num_views} views of each sample, [anchors | partners]: load them "
        f"with {sampler}, PairedDataset and PairingCollator, and split no batch (Accelerate's dispatch_batches, "
        "DataParallel)"
    )


def dry_run(
    objective: Objective, transform: TransformSection, num_samples: int, num_classes: int, device: torch.device
) -> None:
    """One training forward of a copy on blank images of each size, so that mistakes show before anything is written.

    Runs on the process group's device, since the method may use collectives.

    Args:
        transform: the recipe's; images of its test size pass through the model in eval mode, too.
        num_samples: of the smallest batch a rank will see.

    Raises:
        UserError: the model does not take such images, returns no (N, K) logits, or cannot normalise so few images.
    """
    channels, *input_size = transform.input_size
    for size in transform.training_sizes:
        key = "transform.input_size" if size == tuple(input_size) else "transform.size_schedule"
        output = _dry_step(objective, key, (channels, *size), num_samples, device)
        if output.ndim != 2 or output.shape[1] != num_classes:
            raise UserError(
                f"model.global_pool: the model's output has shape {tuple(output.shape)}, not (N, {num_classes}) "
                "logits; leave it out, or choose another model"
            )
    if transform.test_input_size is not None:
        _dry_test(objective, transform, device)


def _dry_step(
    objective: Objective, key: str, shape: tuple[int, ...], num_samples: int, device: torch.device
) -> torch.Tensor:
    """The output of a copy on blank images of one shape, which the recipe's `key` asks for."""
    num_images = num_samples * NUM_VIEWS[objective.method.views]
    size = "×".join(map(str, shape[1:]))
    blank = torch.zeros(num_images, *shape, dtype=torch.uint8, device=device)
    zeros = torch.zeros(num_images, dtype=torch.int64, device=device)
    try:
        with torch.no_grad():
            return copy.deepcopy(objective).to(device).train()(Batch(blank, zeros, zeros))["output"]
    except _FAULTS as error:
        _raise_other_cause(error, f"{num_samples} samples of {size}")
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"data.batch_size: an epoch's last batch leaves {num_samples} to a process, too few for this model's "
                f"BatchNorm at {size}; write data.drop_last=true, another data.batch_size or a larger input"
            ) from None
        reason = one_line(error)
        fix = f"or write 'model.img_size=[{size.replace('×', ',')}]' where the model takes one"
        if key == "transform.size_schedule":
            fix = "or write another size"
        raise UserError(
            f"{key}: the model does not run on images of {size}: {reason}; change it or model.global_pool, {fix}"
        ) from error


def _raise_other_cause(error: Exception, images: str) -> None:
    """Raises UserError if neither the model nor the size of its images is the cause."""
    if is_out_of_device_memory(error) or is_out_of_host_memory(error):
        memory = "memory" if is_out_of_host_memory(error) else "the device's memory"
        raise UserError(
            f"model.model_name: the model does not fit into {memory} with {images}; lower data.batch_size, or choose "
            "a smaller model or transform.input_size"
        ) from None
    if lacks_deterministic(error):
        raise UserError(lacks_deterministic(error)) from None


def lacks_deterministic(error: Exception) -> str | None:
    """One line for the user about an operation without a deterministic kernel, or None."""
    operation, found, _ = one_line(error).partition(" does not have a deterministic implementation")
    return (
        f"run.deterministic: torch has no deterministic {operation}; write run.deterministic=false" if found else None
    )


def _dry_test(objective: Objective, transform: TransformSection, device: torch.device) -> None:
    """One forward of a copy of the model, in eval mode, on a blank image of the test size."""
    model = copy.deepcopy(objective.method.export(objective.module)).to(device).eval()
    test_size = transform.for_evaluation().input_size
    try:
        with torch.no_grad():
            model(torch.zeros(1, *test_size, device=device))
    except _FAULTS as error:
        size, training_size = ("×".join(map(str, each[1:])) for each in (test_size, transform.input_size))
        _raise_other_cause(error, f"1 image of {size}")
        raise UserError(
            f"transform.test_input_size: the model trains on images of {training_size} and does not run on {size}: "
            f"{one_line(error)}; leave it out"
        ) from error


def check_bf16_on_cpu(objective: Objective, transform: TransformSection) -> None:
    """Reject networks with gradients that oneDNN of torch 2.15 leaves undefined: of strides beyond the input's width.

    Raises:
        UserError: the network has one at a training size.
    """
    model = copy.deepcopy(objective.method.export(objective.module)).eval()
    undefined: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[1] > 1:
            module.register_forward_pre_hook(
                lambda conv, inputs, name=name: undefined.append(name) if inputs[0].shape[-1] < conv.stride[1] else None
            )
    for size in transform.training_sizes:
        with torch.no_grad():
            model(torch.zeros(1, transform.input_size[0], *size))
        if undefined:
            raise UserError(
                f"run.mixed_precision: read bf16, in which torch gets the gradients of {undefined[0]} wrong on a CPU "
                f"with images of {'×'.join(map(str, size))}; write run.mixed_precision=no, or a larger "
                "transform.input_size"
            )

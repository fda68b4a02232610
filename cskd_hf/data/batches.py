"""Batches of keys for each rank: the same global batches on any number of ranks, from any position of the epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cskd_hf.data.sampling import Draw, ImageSampler
from cskd_hf.errors import UserError


class Keys(list[Draw]):
    """The keys of one batch, and what size their images have.

    Attributes:
        size: (height, width); None: the transform's.
    """

    def __init__(self, draws: Sequence[Draw], size: tuple[int, int] | None = None) -> None:
        super().__init__(draws)
        self.size = size


class GlobalBatches:
    """This rank's share of every global batch: a torch batch sampler that starts at any position of the epoch.

    The global batch at sample position p holds the keys [p, p + batch_size · num_processes) in the sampler's order,
    split into consecutive blocks, one per rank. Ranks × batch size of 1 × 8, 2 × 4 and 4 × 2 see the same global
    batches, every key is loaded exactly once, and a run can resume on another number of ranks. A short last batch is
    split as evenly as possible; a rank left without keys repeats the batch's last one, which `counts` does not count.

    Args:
        sampler: yields the same keys on every rank.
        batch_size: B, keys per batch on each rank.
        num_processes, process_index: the number of ranks, and this one.
        drop_last: drop the short last batch.
        size_of: epoch, from 0 → (height, width) of its images; None: the transform's in every epoch.

    Raises:
        UserError: `drop_last` leaves no batch, `batch_size` is below 1, or there is no such rank.

    Example:
        >>> from cskd_hf import ClassPairSampler, GlobalBatches
        >>> samplers = [ClassPairSampler([0, 1, 0, 1, 0, 1], seed=0) for _ in range(3)]
        >>> whole = GlobalBatches(samplers[2], batch_size=4)
        >>> ranks = [GlobalBatches(samplers[rank], 2, num_processes=2, process_index=rank) for rank in range(2)]
        >>> [first + second for first, second in zip(*ranks)] == list(whole)
        True
        >>> whole.start_epoch(0, position=4)  # resume in the middle of the epoch
        >>> [len(keys) for keys in whole]
        [2]
    """

    def __init__(
        self,
        sampler: ImageSampler,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        drop_last: bool = False,
        size_of: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        if not 0 <= process_index < num_processes:
            raise UserError(f"process_index: read {process_index}; write 0 to {num_processes - 1}")
        if batch_size < 1:
            raise UserError(f"batch_size: read {batch_size}; write 1 or more")
        self.sampler, self.batch_size = sampler, batch_size
        self.num_processes, self.process_index = num_processes, process_index
        self.global_batch_size = batch_size * num_processes
        self.num_samples = len(sampler)
        if drop_last:
            self.num_samples -= self.num_samples % self.global_batch_size
        if self.num_samples == 0:
            raise UserError(
                f"data.drop_last: {len(sampler)} images do not fill one batch of {batch_size} on {num_processes} "
                "processes; lower data.batch_size, or write data.drop_last=false"
            )
        self.position, self.size_of = 0, size_of

    def start_epoch(self, epoch: int, position: int = 0) -> None:
        """Move to a sample position of an epoch; takes effect at the next iteration."""
        self.sampler.set_epoch(epoch)
        self.position = position

    def first_keys(self) -> str:
        """The next four keys of this rank as text, the images of a key joined by +: "12+407, 33+8, …"."""
        draws = next(iter(self), Keys([]))
        keys = ["+".join(map(str, dict.fromkeys(draw.indices))) for draw in draws[:4]]
        return ", ".join(keys) + (", …" if len(draws) > 4 else "")

    @property
    def smallest(self) -> int:
        """Samples in the smallest batch that any rank loads in an epoch, at least one."""
        last = self.num_samples % self.global_batch_size or self.global_batch_size
        return max(last // self.num_processes, 1)

    def counts(self, position: int) -> tuple[int, int]:
        """Samples in the global batch at `position`, and how many of them are this rank's."""
        total = min(self.global_batch_size, self.num_samples - position)
        start, stop = self._share(total)
        return total, stop - start

    def _share(self, total: int) -> tuple[int, int]:
        each, extra = divmod(total, self.num_processes)
        start = self.process_index * each + min(self.process_index, extra)
        return start, start + each + (self.process_index < extra)

    def __len__(self) -> int:
        return -(-(self.num_samples - self.position) // self.global_batch_size)

    def __iter__(self) -> Iterator[Keys]:
        self.sampler.warn_if_shown()
        size = None if self.size_of is None else self.size_of(self.sampler.epoch)
        for position in range(self.position, self.num_samples, self.global_batch_size):
            total, _ = self.counts(position)
            start, stop = self._share(total)
            if start == stop:
                start, stop = total - 1, total
            yield Keys(self.sampler.draws(position + start, position + stop), size)
            self.sampler.shown = True

"""Which keys each process loads: the same global batches for any number of processes, from any position on."""

from __future__ import annotations

from collections.abc import Iterator

from cskd_hf.data.pairing import Draw, ImageSampler
from cskd_hf.errors import UserError


class GlobalBatches:
    """This process's share of every global batch: a torch batch sampler that starts at any position of the epoch.

    The global batch at sample position p holds the keys [p, p + batch_size · num_processes) in the sampler's order,
    dealt out in consecutive blocks. So 1 × 8, 2 × 4 and 4 × 2 processes × batch see the same global batches, each key
    is loaded exactly once, and a run may go on with another number of processes. A short last batch is dealt out as
    evenly as it goes; a process that would get nothing repeats the batch's last key, and `counts` says that this one
    weighs nothing.

    Args:
        sampler: yields the same keys in every process.
        batch_size: B, keys a batch on each process.
        num_processes, process_index: this process among all.
        drop_last: leave the short last batch out.
    """

    def __init__(
        self,
        sampler: ImageSampler,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.num_processes, self.process_index = num_processes, process_index
        self.global_batch_size = batch_size * num_processes
        self.num_samples = len(sampler)
        if drop_last:
            self.num_samples -= self.num_samples % self.global_batch_size
        if self.num_samples == 0:
            raise UserError(
                f"data.drop_last: {len(sampler)} images do not fill one batch of {batch_size} on {num_processes} "
                "processes; lower data.batch_size"
            )
        self.position = 0

    def start_epoch(self, epoch: int, position: int = 0) -> None:
        """Go to a sample position of an epoch; takes effect at the next iteration."""
        self.sampler.set_epoch(epoch)
        self.position = position

    def first_keys(self, count: int = 4) -> str:
        """The keys that this process loads next, for people: images of a key joined by +, "12+407, 33+8, …"."""
        draws = next(iter(self), [])
        told = ["+".join(map(str, dict.fromkeys(draw.indices))) for draw in draws[:count]]
        return ", ".join(told) + (", …" if len(draws) > count else "")

    @property
    def smallest(self) -> int:
        """Samples of the smallest batch that any process loads in an epoch; one that has nothing repeats a key."""
        last = self.num_samples % self.global_batch_size or self.global_batch_size
        return max(last // self.num_processes, 1)

    def counts(self, position: int) -> tuple[int, int]:
        """How many samples the global batch at `position` has, and how many of them are this process's."""
        total = min(self.global_batch_size, self.num_samples - position)
        start, stop = self._share(total)
        return total, stop - start

    def _share(self, total: int) -> tuple[int, int]:
        each, extra = divmod(total, self.num_processes)
        start = self.process_index * each + min(self.process_index, extra)
        return start, start + each + (self.process_index < extra)

    def __len__(self) -> int:
        return -(-(self.num_samples - self.position) // self.global_batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for position in range(self.position, self.num_samples, self.global_batch_size):
            total, _ = self.counts(position)
            start, stop = self._share(total)
            if start == stop:
                start, stop = total - 1, total
            yield self.sampler.draws(position + start, position + stop)

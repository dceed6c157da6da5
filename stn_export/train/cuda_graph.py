"""Record training steps once as a CUDA graph and replay them: one launch per step instead of hundreds.

Dropout and augmentation draw new numbers at every replay, because PyTorch advances the generator of a captured graph.
Several trainers are recorded into one graph, each on its own stream, so that their small kernels overlap.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stn_export.train.trainer import Trainer, advance, get_generators, set_generators

WARM_UP_STEPS = 3  # before a capture: cuDNN chooses algorithms, the optimiser creates buffers

Record = Callable[[Callable[[], None]], Callable[[], None]]


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture the CUDA work of ``work``, after warming up on a side stream; return a function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):  # cuBLAS already has a workspace on this stream
        work()
    return graph.replay


class CapturedSteps:
    """A captured ``advance`` for these trainers; a smaller last batch of an epoch is not captured."""

    def __init__(self, trainers: Sequence[Trainer], record: Record = record_graph) -> None:
        size = trainers[0].settings.recipe.batch_size
        self.trainers = trainers
        self.chosen = [torch.zeros(size, dtype=torch.int64, device=trainer.device) for trainer in trainers]
        self.losses = [torch.zeros((), device=trainer.device) for trainer in trainers]
        on_cuda = trainers[0].device.type == "cuda"
        self.streams = [torch.cuda.Stream() for _ in trainers] if on_cuda and len(trainers) > 1 else []
        before = [Snapshot(trainer) for trainer in trainers]
        for trainer in trainers:
            trainer.model.train()  # dropout must be on when recorded; evaluation turns it off
        self.replay = record(self._work)
        for snapshot in before:
            snapshot.put_back()

    def _work(self) -> None:
        """Run a step of every trainer, on streams that fork from the current one and join it again."""
        if not self.streams:
            for index in range(len(self.trainers)):
                self._step(index)
            return
        current = torch.cuda.current_stream()
        for index, stream in enumerate(self.streams):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._step(index)
        for stream in self.streams:
            current.wait_stream(stream)

    def _step(self, index: int) -> None:
        self.losses[index].copy_(self.trainers[index].step(self.chosen[index]))

    def __call__(self, trainers: Sequence[Trainer]) -> None:
        """Run one step of each trainer."""
        if len(trainers[0].batches[trainers[0].position]) < len(self.chosen[0]):
            advance(trainers)
            return
        for trainer, chosen in zip(trainers, self.chosen, strict=True):
            chosen.copy_(trainer.next_batch())
        self.replay()
        for trainer, loss in zip(trainers, self.losses, strict=True):
            trainer.note(loss)


class Snapshot:
    """A copy of a trainer's tensors and generators before a capture, whose warm-up steps change them."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.weights = [tensor.clone() for tensor in trainer.model.state_dict().values()]
        self.moments = {
            id(tensor): tensor.clone() for tensor in _moments(trainer)
        }  # none before the first step; those that a warm-up makes start from zero
        self.generators = get_generators(trainer.device)

    def put_back(self) -> None:
        """Restore all of them in place: the graph refers to these very tensors."""
        for tensor, weights in zip(self.trainer.model.state_dict().values(), self.weights, strict=True):
            tensor.copy_(weights)
        for tensor in _moments(self.trainer):
            tensor.copy_(self.moments.get(id(tensor), torch.zeros_like(tensor)))
        set_generators(self.generators)


def _moments(trainer: Trainer) -> list[Tensor]:
    """Return the optimiser's own tensors: momenta, and Adam's count of steps."""
    return [tensor for state in trainer.optimizer.state.values() for tensor in state.values() if tensor is not None]

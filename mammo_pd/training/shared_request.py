"""What signals ask of a training in several processes: all of them act on it at the same step."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from mammo_pd.stopping import Request

# Steps from a request to its answer. In the meantime it is exchanged behind the work that is
# queued on the devices, so that no step waits for its own exchange.
_STEPS = 2


class SharedRequest:
    """Tells every process what any of them was asked.

    A signal reaches processes between different steps, or one of them alone. One that ended by
    itself would leave the others waiting for its gradients for ever, with nothing saved.

    Args:
        processes: that train together.
        device: of this one.
    """

    def __init__(self, processes: int, device: torch.device) -> None:
        self._alone = processes == 1
        self._device = device
        self._sent: deque[_Sent] = deque()

    def after_step(self, own: Request) -> Request:
        """What is to be done now, in every process: what was asked of any of them some steps ago.

        To be called by all after each step.

        Args:
            own: what this process has been asked; alone, it is to be done now.
        """
        if self._alone:
            return own
        self._sent.append(_Sent(own, self._device))
        return self._sent.popleft().read() if len(self._sent) > _STEPS else Request.NOTHING

    def now(self, own: Request) -> Request:
        """What has been asked of any process up to now; waits for all of them."""
        if self._alone:
            return own
        self._sent.append(_Sent(own, self._device))
        return max(self._read_all())

    def _read_all(self) -> Iterator[Request]:
        while self._sent:
            yield self._sent.popleft().read()


class _Sent:
    """One exchange under way."""

    def __init__(self, own: Request, device: torch.device) -> None:
        # Filled by the device itself: a copy from the host would wait for what is queued.
        value = torch.full((), int(own), dtype=torch.int32, device=device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        self._value: Tensor = value
        self._copied: torch.cuda.Event | None = None
        if value.is_cuda:
            host = torch.empty((), dtype=torch.int32, pin_memory=True)
            self._value = host.copy_(value, non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event()

    def read(self) -> Request:
        if self._copied is not None:
            self._copied.synchronize()
        return Request(int(self._value))

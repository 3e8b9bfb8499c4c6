import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mammo_pd.stopping import Request
from mammo_pd.training.shared_request import SharedRequest

NOTHING, SAVE, INTERRUPT, TERMINATE = Request
CPU = torch.device("cpu")


def test_alone_what_is_asked_is_done_now() -> None:
    alone = SharedRequest(1, CPU)
    assert [alone.after_step(asked) for asked in Request] == list(Request)
    assert [alone.now(asked) for asked in Request] == list(Request)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "device", [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=str
)
def test_requests_are_done_in_order_and_each_once(device: torch.device) -> None:
    shared = SharedRequest(2, device)
    asked = [NOTHING, SAVE, NOTHING, NOTHING, INTERRUPT, TERMINATE, NOTHING, NOTHING]
    assert [shared.after_step(one) for one in asked] == [NOTHING, NOTHING, *asked[:-2]]
    # Nothing is left open.
    assert shared.now(NOTHING) is NOTHING
    shared.after_step(TERMINATE)
    assert shared.now(SAVE) is TERMINATE
    assert shared.now(SAVE) is SAVE
    assert shared.now(NOTHING) is NOTHING


_TWO = """
import sys
import torch
from mammo_pd.stopping import Request
from mammo_pd.training.shared_request import SharedRequest

rank, store = int(sys.argv[1]), torch.distributed.FileStore(sys.argv[2], 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
shared = SharedRequest(2, torch.device("cpu"))
# Each is asked at steps of its own; the last step of an epoch is the tenth.
asked = ({2: Request.SAVE, 7: Request.INTERRUPT}, {3: Request.SAVE, 9: Request.TERMINATE})[rank]
for step in range(1, 11):
    own = asked.get(step, Request.NOTHING)
    done = shared.now(own) if step == 10 else shared.after_step(own)
    print(step, done.name)
"""


def test_all_processes_do_the_same_at_the_same_step(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO]
    processes = [
        subprocess.Popen([*command, rank, tmp_path / "store"], stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    done = {4: SAVE, 5: SAVE, 9: INTERRUPT, 10: TERMINATE}
    expected = [f"{step} {done.get(step, NOTHING).name}" for step in range(1, 11)]
    assert told == [expected, expected]

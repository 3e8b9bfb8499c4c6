"""Captured steps learn what others do; their bookkeeping is tried without a GPU."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mammo_pd.backbones.build import build_backbone
from mammo_pd.batch import ImageBatch
from mammo_pd.config import DeviceSettings, RunConfig
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw
from mammo_pd.training import captured
from mammo_pd.training.captured import CapturedWork
from mammo_pd.training.devices import compile_blocks, deterministic_kernels, make_fabric
from mammo_pd.training.objectives import build_objective
from mammo_pd.training.optimizer import make_optimizer, parameter_groups, set_learning_rate
from mammo_pd.training.step import TrainingStep

CPU = torch.device("cpu")


class PretendedGraph:
    """Stands for a CUDA graph: does the work again on the memory that it was captured with."""

    def __init__(self, work: Any, batch: ImageBatch, keys: torch.Tensor) -> None:
        self._repeat = lambda: work(batch, keys)
        self.result = torch.empty(0)

    def replay(self) -> None:
        self.result.copy_(self._repeat())


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Captures work without a GPU."""

    def record(work: Any, batch: ImageBatch, keys: torch.Tensor, pool: Any) -> Any:
        graph = PretendedGraph(work, batch, keys)
        graph.result = work(batch, keys).clone()
        return graph, graph.result

    monkeypatch.setattr(captured, "_record", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 10)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (90, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10)
    monkeypatch.setattr(captured, "memory_of", lambda _: 100)
    return []


def batches(
    count: int = 8, size: int = 3, *, fused: bool = False
) -> Iterator[tuple[ImageBatch, torch.Tensor]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        shapes = rng.integers(2, 6, (size, 2))
        images = [rng.integers(0, 9, shape).astype(np.uint16) for shape in shapes]
        batch = ImageBatch.from_images(images)
        if fused:
            views = torch.from_numpy(rng.integers(0, 3, (size, 3)))
            batch = replace(batch, views=views, units=(1,) * size)
        yield batch, torch.arange(size) + 10 * number


def sums(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
    """Depends on everything that a batch holds but its targets, which are none."""
    ends = batch.offsets + batch.heights * batch.widths
    total = [
        batch.pixels[start:end].sum() + height
        for start, end, height in zip(batch.offsets, ends, batch.heights, strict=True)
    ]
    of_views = 0 if batch.views is None else batch.views @ torch.tensor([1, 10, 100])
    return torch.stack(total) + keys + of_views


@pytest.mark.parametrize("fused", [False, True])
def test_results_are_those_of_each_batch_and_stay_so(said: list[str], fused: bool) -> None:
    work = CapturedWork(CPU, 25, said.append)
    found = [(work.run("sums", sums, *given), sums(*given)) for given in batches(fused=fused)]
    assert len(work._graphs) == 1
    for result, expected in found:
        assert torch.equal(result, expected)
    assert not said


def test_each_number_of_images_and_each_name_has_its_own(said: list[str]) -> None:
    work = CapturedWork(CPU, 25, said.append)
    for size in (3, 2, 3):
        for given in batches(size=size):
            assert torch.equal(work.run("sums", sums, *given), sums(*given))
            twice = work.run("twice", lambda batch, keys: 2 * sums(batch, keys), *given)
            assert torch.equal(twice, 2 * sums(*given))
    assert len(work._graphs) == 4


def test_what_does_not_fit_runs_as_it_did(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Images larger than was said.
    work = CapturedWork(CPU, 3, said.append)
    for given in batches():
        assert torch.equal(work.run("sums", sums, *given), sums(*given))
    # A step that fills the memory, and memory that another process has filled.
    for name, value in (("memory_of", 20), ("memory_of", 100)):
        monkeypatch.setattr(captured, name, lambda _, value=value: value)
        if value == 100:
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 100))
        work = CapturedWork(CPU, 25, said.append)
        for given in batches():
            assert torch.equal(work.run("sums", sums, *given), sums(*given))
        assert not work._graphs


def test_work_has_seen_the_sizes_of_what_is_captured_before(said: list[str]) -> None:
    sizes = []

    def work(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        sizes.append((len(batch.pixels), batch.rows.device))
        return sums(batch, keys)

    captured_work = CapturedWork(CPU, 25, said.append)
    for batch, keys in batches(4):
        captured_work.run("sums", work, batch, keys)
    # The last warm-up call, the capture, and the replay, which does it again here.
    assert sizes[2] == sizes[3] == sizes[4] == (75, torch.device("meta"))
    assert {size for size, _ in sizes[:2]} == {len(batch.pixels) for batch, _ in batches(2)}


def test_memory_waits_for_no_more_graphs_than_there_may_be(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = CapturedWork(CPU, 25, said.append)
    given = list(batches(20))
    # Keep rates drawn anew: many kinds of work, none of which is done often.
    for name in range(20):
        for batch, keys in given[:3]:
            work.run(name, sums, batch, keys)
    assert 0 < len(work._memory) <= captured._MOST_GRAPHS
    for name in range(20):
        for batch, keys in given[3:6]:
            assert torch.equal(work.run(name, sums, batch, keys), sums(batch, keys))
    assert len(work._graphs) == captured._MOST_GRAPHS
    assert not work._memory

    # Where room is gone after the warm-up, what waits for its capture is let go.
    work = CapturedWork(CPU, 25, said.append)
    for number, (batch, keys) in enumerate(given[:6]):
        monkeypatch.setattr(captured, "memory_of", lambda _, full=number > 2: 20 if full else 100)
        work.run("sums", sums, batch, keys)
    assert not work._memory
    assert not work._graphs


@pytest.mark.parametrize("ended", [False, True])
def test_a_pool_is_released_once(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """By the graph itself, where the work failed and its capture did not."""
    released = []

    def end(index: int, pool: object) -> None:
        if ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(captured, "_capturing", lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_releasePool", lambda *given: released.append(given), raising=False
    )
    captured._end_failed_capture(CPU, (0, 1))
    assert released == ([] if ended else [(0, (0, 1))])
    # They are none that torch has promised to keep.
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    captured._end_failed_capture(CPU, (0, 1))


@pytest.mark.gpu
def test_work_that_fails_in_a_sound_capture_leaves_earlier_graphs_their_memory() -> None:
    device = torch.device("cuda", 0)
    said: list[str] = []

    def doubles(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        large = (batch.heights + keys)[:, None].repeat(1, 1 << 20)
        return (large * 2)[:, -1]

    def fails(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        result = doubles(batch, keys)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("no memory")
        return result

    work = CapturedWork(device, 25, said.append)
    for name, do in (("doubles", doubles), ("fails", fails), ("doubles", doubles)):
        for batch, keys in batches(6):
            given = batch.to(device), keys.to(device)
            torch.cuda.empty_cache()
            # Takes what has become free.
            other = torch.full((1 << 26,), -1, device=device)
            assert torch.equal(work.run(name, do, *given), doubles(*given))
            assert (other == -1).all()
    assert len(work._graphs) == 1
    assert len(said) == 1


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_the_device_as_it_was() -> None:
    device = torch.device("cuda", 0)
    said: list[str] = []

    def adds(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        return batch.heights * batch.widths + keys

    def waits(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        large = torch.rand(1 << 26, device=device)
        return adds(batch, keys) + round(0 * float(large[0]))

    def run(work: Any) -> CapturedWork:
        captured_work = CapturedWork(device, 25, said.append)
        for batch, keys in batches(6):
            found = captured_work.run("work", work, batch.to(device), keys.to(device))
            assert torch.equal(found.cpu(), adds(batch, keys))
        return captured_work

    assert run(adds)._graphs
    torch.cuda.empty_cache()
    before = torch.cuda.current_stream(), torch.cuda.memory_reserved()
    assert not run(waits)._graphs
    assert len(said) == 1
    # Refused where the generator still takes itself to be captured.
    assert torch.rand(4, device=device).sum() > 0
    torch.cuda.empty_cache()
    assert torch.cuda.current_stream() == before[0]
    assert torch.cuda.memory_reserved() < before[1] + (1 << 27)
    assert run(adds)._graphs
    assert len(said) == 1


def test_what_cannot_be_captured_is_said_once(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(captured, "_record", fail)
    work = CapturedWork(CPU, 25, said.append)
    for given in batches():
        assert torch.equal(work.run("sums", sums, *given), sums(*given))
    [line] = said
    assert "without CUDA graphs" in line
    assert "is capturing" in line


def test_a_capture_that_fails_holds_no_memory_in_the_step_after_it(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fail(work: Any, batch: ImageBatch, keys: torch.Tensor, pool: Any) -> None:
        activations = torch.zeros(9)
        held.extend(map(weakref.ref, (activations, batch.pixels)))
        raise torch.OutOfMemoryError  # without a word

    def work(batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        assert [one() for one in held] in ([], [None, None])
        return sums(batch, keys)

    monkeypatch.setattr(captured, "_record", fail)
    captured_work = CapturedWork(CPU, 25, said.append)
    for batch, keys in batches():
        assert torch.equal(captured_work.run("sums", work, batch, keys), sums(batch, keys))
    assert len(held) == 2
    [line] = said
    assert line.endswith("OutOfMemoryError")


@pytest.mark.parametrize("reason", [RuntimeError("while capturing"), torch.OutOfMemoryError("no")])
def test_a_capture_that_fails_after_its_backward_pass_spoils_no_step(
    said: list[str], monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    def fail(work: Any, batch: ImageBatch, keys: torch.Tensor, pool: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingStep, "_update", lambda _: None)
            work(batch, keys)
        raise reason

    monkeypatch.setattr(captured, "_record", fail)
    weights = []
    for capture in (False, True):
        torch.manual_seed(0)
        given = RunConfig()
        fabric = make_fabric(given.replace(device=given.device.replace(accelerator="cpu")))
        model = build_backbone("test_vit", (64, 48))
        module, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        step = TrainingStep(
            fabric,
            module.train(),
            optimizer,
            PatchSampler((64, 48), 16),
            build_objective(RunConfig().training),
            captured=CapturedWork(CPU, 100, said.append) if capture else None,
        )
        for batch, keys in batches(5):
            batch.targets[:] = 1.0
            step(batch, keys, 4, 2)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert len(said) == 1
    torch.testing.assert_close(*weights, atol=0, rtol=0)


class OneOfTwo:
    """A fabric as one of two processes has it, in a thread."""

    world_size = 2

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fabric, name)


class NotCaptured(CapturedWork):
    """Does the work as it is given."""

    def __init__(self) -> None:
        super().__init__(CPU, 100, print)

    def run(self, name: object, work: Any, batch: ImageBatch, keys: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = work(batch, keys)
        return found


def test_processes_that_exchange_gradients_in_one_piece_learn_what_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of unequal shares of a batch, each image counts the same."""
    met, given = threading.Barrier(2), dict[int, torch.Tensor]()

    def add_up(found: torch.Tensor) -> None:
        given[threading.get_ident()] = found.clone()
        met.wait(60)
        total = torch.stack(list(given.values())).sum(dim=0)
        met.wait(60)
        found.copy_(total)
        given.clear()
        met.wait(60)

    monkeypatch.setattr(torch.distributed, "all_reduce", add_up)
    config = RunConfig()
    fabric = make_fabric(config.replace(device=config.device.replace(accelerator="cpu")))
    shares = ((0, 3), (3, 8))

    def make(*, alone: bool) -> tuple[TrainingStep, torch.nn.Module]:
        torch.manual_seed(0)
        model = build_backbone("test_vit", (64, 48))
        module, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01))
        step = TrainingStep(
            fabric if alone else OneOfTwo(fabric),
            module.train(),
            optimizer,
            PatchSampler((64, 48), 16),
            build_objective(config.training),
            clip_norm=0.5,
            captured=None if alone else NotCaptured(),
        )
        return step, model

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 65536, (60, 40)).astype(np.uint16) for _ in range(8)]
    batch = ImageBatch.from_images(images)
    batch.targets[:] = torch.arange(8)[:, None] % 2
    keys = torch.arange(8)
    whole, expected = make(alone=True)
    steps = [make(alone=False) for _ in shares]

    def take(number: int) -> list[torch.Tensor]:
        (start, end), (step, _) = shares[number], steps[number]
        part = batch.slice(start, end)
        weight = (end - start) * 2 / 8
        return [step(part, keys[start:end], 5, 1 + turn, weight) for turn in range(3)]

    with ThreadPoolExecutor(2) as threads:
        losses = list(threads.map(take, range(2)))
    alone = torch.stack([whole(batch, keys, 5) for _ in range(3)])
    for found, (_, model) in zip(losses, steps, strict=True):
        torch.testing.assert_close(torch.stack(found), alone, atol=1e-5, rtol=1e-5)
        for weight, own in zip(expected.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own, weight, atol=1e-4, rtol=1e-3)


IMG_SIZE = (128, 96)


def learn(
    *,
    capture: bool,
    compiled: bool,
    precision: str,
    draw: Draw,
    learnt: str = "binary_label",
    narrow: bool = False,
) -> list[torch.Tensor]:
    """Losses of some steps on ragged images, and the weights after them."""
    torch.compiler.reset()
    torch.manual_seed(0)
    given = RunConfig()
    fabric = make_fabric(given.replace(device=given.device.replace(precision=precision)))
    changes = {"fusion" if learnt == "exam" else "objective": learnt}
    objective = build_objective(given.training.replace(**changes))
    backbone = build_backbone(
        "vit_tiny_patch16_224",
        IMG_SIZE,
        num_outputs=objective.num_outputs,
        drop_path_rate=0.2,
    )
    if narrow:
        backbone.narrow_residual()
    model = objective.build_model(backbone)
    sampler = PatchSampler(IMG_SIZE, 16, draw=draw, compiled=compiled)
    groups = parameter_groups(model, backbone.timm_model, weight_decay=0.05, layer_decay=0.75)
    if compiled:
        compile_blocks(model)
    # The rates lie on the device in both: what is compared is the launching alone.
    optimizer = make_optimizer(groups, 1e-4, fused=True, captured_on=fabric.device)
    module, optimizer = fabric.setup(model, optimizer)
    step = TrainingStep(
        fabric,
        module.train(),
        optimizer,
        sampler,
        objective,
        clip_norm=1.0,
        captured=CapturedWork(fabric.device, 150 * 120, print) if capture else None,
    )
    rng = np.random.default_rng(1)
    losses = []
    for number in range(30):
        shapes = rng.integers((100, 50), (150, 120), (16, 2))
        images = [rng.integers(0, 65536, shape).astype(np.uint16) for shape in shapes]
        for image in images:
            image[:, image.shape[1] // 2 :] = 0
        batch = ImageBatch.from_images(images)
        if learnt == "exam":
            # Other views in each batch, of units that are cut in the same places.
            views = np.stack([np.arange(16) // 4, *rng.integers(0, 2, (2, 16))], axis=1)
            batch = replace(batch, views=torch.from_numpy(views), units=(4,) * 4)
        batch = batch.to(fabric.device)
        batch.targets[:] = torch.from_numpy(rng.integers(0, 2, (16, 1))).float().to(fabric.device)
        keys = torch.arange(16, device=fabric.device) + 1000 * number
        set_learning_rate(optimizer, 1e-5 * (1 + number % 7))
        torch.manual_seed(number)
        losses.append(step(batch, keys, 12, 1 + number % 2))
    if capture:
        assert step.captured is not None
        assert len(step.captured._graphs) == 2
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return [torch.stack(losses), weights]


@pytest.mark.gpu
@pytest.mark.parametrize("learnt", ["binary_label", "masked_autoencoder", "exam"])
@pytest.mark.parametrize("draw", list(Draw))
def test_captured_steps_equal_others(draw: Draw, learnt: str) -> None:
    for compiled, precision, tolerance, narrow in (
        (False, "64-true", 1e-9, False),
        (False, "32-true", 1e-5, False),
        (True, "32-true", 1e-5, False),
        (True, "bf16-mixed", 0, False),
        (True, "bf16-mixed", 0, True),
    ):
        # Atomic sums differ from one run to the next, in bf16 by more than any tolerance.
        device = DeviceSettings(deterministic=compiled)
        with deterministic_kernels(RunConfig().replace(device=device)):
            plain, graph = (
                learn(
                    capture=capture,
                    compiled=compiled,
                    precision=precision,
                    draw=draw,
                    learnt=learnt,
                    narrow=narrow,
                )
                for capture in (False, True)
            )
        torch.testing.assert_close(graph, plain, atol=tolerance, rtol=0)

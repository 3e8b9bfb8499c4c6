"""What is compiled of the sampler, with graphs counted in place of machine code."""

import functools

import pytest
import torch

from mammo_pd.batch import ImageBatch
from mammo_pd.patches.sampler import PatchSampler
from mammo_pd.terms import Draw


@pytest.mark.parametrize("automatic", [True, False])
def test_code_for_any_number_of_pixels_is_made_with_the_first_batch(
    automatic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two batches have equally many: otherwise each would be compiled anew, or the second."""
    from torch._dynamo import config as dynamo

    graphs: list[torch.fx.GraphModule] = []

    def keep(module: torch.fx.GraphModule, _: object) -> object:
        graphs.append(module)
        return module.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=keep))
    sampler = PatchSampler((128, 96), 16, draw=Draw.TISSUE, compiled=True)
    plain = PatchSampler((128, 96), 16, draw=Draw.TISSUE)
    generator = torch.Generator().manual_seed(0)
    with dynamo.patch(automatic_dynamic_shapes=automatic):
        for number in range(4):
            pixels = torch.randint(-32768, 32768, (4, 150 + number, 120), generator=generator)
            images = ImageBatch.from_images(list(pixels.short().numpy().view("uint16")))
            keys = torch.arange(4) + 10 * number
            found, expected = (one.for_training(images, keys, 12) for one in (sampler, plain))
            torch.testing.assert_close(found, expected)
            # Where each image lies, which patches hold breast, and the kept ones' pixels.
            assert len(graphs) == 3

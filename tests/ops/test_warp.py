"""warp: against grid_sample, its own reference and itself; jitter against what it is said to be."""

import pytest
import torch
import torch.nn.functional as F
from common import each_device, image_batches, needs_kernels, on, random_bytes, row_choices, seeded, without_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bdaudit import ops
from bdaudit.errors import UsageError
from bdaudit.ops import extension, reference


def identity(h: int, w: int) -> Tensor:
    x, y = torch.linspace(-1, 1, w), torch.linspace(-1, 1, h)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def wanet_flow(h: int, w: int, seed: int = 0, k: int = 4, s: float = 0.5) -> Tensor:
    """The field of WaNet's attack: a coarse random one, made smooth and added to the identity."""
    coarse = torch.rand(1, 2, k, k, generator=seeded(seed)) * 2 - 1
    smooth = F.interpolate(coarse / coarse.abs().mean(), (h, w), mode="bicubic", align_corners=True)
    return (identity(h, w) + s * smooth[0].permute(1, 2, 0) / h).clamp(-1, 1)


def sampled(images: Tensor, flow: Tensor) -> Tensor:
    grid = flow.double().expand(len(images), *flow.shape[-3:])
    return F.grid_sample(images.double(), grid, align_corners=True)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    """Everything that `warp` accepts: shapes, strides, flows far outside, rows, jitter, kinds of seed."""
    n, c = draw(st.sampled_from([0, 1, 2, 5, 31, 32, 33, 70])), draw(st.integers(1, 3))
    h, w = draw(st.integers(1, 35)), draw(st.integers(1, 35))
    seed = draw(st.integers(0, 2**31))
    images = draw(image_batches(n, c, h, w, seed))
    h, w = images.shape[2:]
    reach = draw(st.sampled_from([0.05, 0.5, 3.0]))
    flow = identity(h, w) + reach * (2 * torch.rand(h, w, 2, generator=seeded(seed)) - 1)
    rows = draw(row_choices(n, seed))
    seeds: int | Tensor = draw(st.integers(-(2**63), 2**63 - 1))
    if draw(st.booleans()):
        seeds = torch.randint(-(2**62), 2**62, (n,), generator=seeded(seed))
    jitter = draw(st.sampled_from([0.0, 0.0, 1 / h, 0.7, 2.0]))
    return {"images": images, "flow": flow, "rows": rows, "jitter": jitter, "seed": seeds}


@each_device
@settings(max_examples=80, deadline=None, derandomize=True)
@given(problem=problems())
def test_every_backend_gives_the_same_bytes(device: str, problem: dict[str, object]) -> None:
    before = problem["images"].clone()
    expected = without_kernels(lambda: ops.warp(**problem))
    result = ops.warp(**on(device, problem))
    assert result.is_contiguous()
    assert torch.equal(result.cpu(), expected)
    assert torch.equal(problem["images"], before)


@each_device
@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=problems())
def test_warp_is_grid_sample_within_one_level(device: str, problem: dict[str, object]) -> None:
    problem["jitter"] = 0.0
    images, rows = problem["images"], problem["rows"]
    expected = images.double()
    chosen = torch.arange(len(images)) if rows is None else rows
    if len(images):
        expected[chosen] = sampled(images[chosen], problem["flow"])
    result = ops.warp(**on(device, problem)).cpu()
    assert not len(images) or float((result.double() - expected).abs().max()) < 0.6


def test_the_identity_changes_nothing_and_a_shift_moves_whole_pixels() -> None:
    images = random_bytes(40, 3, 32, 28)
    assert torch.equal(ops.warp(images, identity(32, 28)), images)
    shifted = ops.warp(images, identity(32, 28) + torch.tensor([2 / 27, 0.0]))
    assert torch.equal(shifted[..., :-1], images[..., 1:])
    assert not shifted[..., -1].any()


def test_wanets_own_field_gives_wanets_own_images() -> None:
    images, flow = random_bytes(64, 3, 32, 32), wanet_flow(32, 32)
    result = ops.warp(images, flow)
    assert float((result.double() - sampled(images, flow)).abs().max()) < 0.6
    assert not torch.equal(result, images)


def test_positions_may_be_made_once() -> None:
    images, flow = random_bytes(3, 1, 9, 11), wanet_flow(9, 11)
    fixed = ops.positions(flow)
    assert fixed.dtype == torch.int32
    assert ops.positions(fixed) is fixed
    assert torch.equal(ops.warp(images, fixed), ops.warp(images, flow))
    far = torch.full((9, 11, 2), 1e30, dtype=torch.float64)
    assert not ops.warp(images, far).any()


def moves(n: int, side: int, jitter: float, seed: int | Tensor) -> Tensor:
    """How far jitter moves each position, in pixels: read off a ramp, far from the edges. (n, side, side)."""
    ramp = torch.arange(side, dtype=torch.uint8).mul(255 // (side - 1)).expand(n, 1, side, side)
    warped = ops.warp(ramp, identity(side, side), jitter=jitter, seed=seed)
    return (warped.double() - ramp.double())[:, 0, 4:-4, 4:-4] / (255 // (side - 1))


def test_jitter_is_even_over_its_range_and_independent() -> None:
    side, jitter = 32, 2 / 31  # one pixel to either side
    moved = moves(400, side, jitter, seed=5)
    # A pixel is 8 levels of the ramp: 15 levels of the move with a sixteenth each, and half as much at either end.
    shares = torch.bincount((moved * 8).round().long().flatten() + 8, minlength=17) / moved.numel()
    assert len(shares) == 17
    assert torch.allclose(shares, torch.tensor([1 / 32, *[1 / 16] * 15, 1 / 32]), atol=0.002)
    flat = moved.flatten(1) - moved.mean()
    neighbours = [(flat[1:], flat[:-1]), (flat[:, 1:], flat[:, :-1])]
    for a, b in neighbours:
        assert abs(float((a * b).mean() / flat.square().mean())) < 0.01


def test_jitter_of_x_and_y_are_independent() -> None:
    side, jitter = 32, 2 / 31
    step = 255 // (side - 1)
    ramp = torch.arange(side, dtype=torch.uint8).mul(step)
    both = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)]).expand(200, 2, side, side)
    moved = (ops.warp(both, identity(side, side), jitter=jitter, seed=1).double() - both.double())[..., 4:-4, 4:-4]
    x, y = moved[:, 0].flatten(), moved[:, 1].flatten()
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.01


def test_jitter_follows_its_seed_and_not_the_batch() -> None:
    images, flow = random_bytes(20, 3, 16, 16), wanet_flow(16, 16)
    seeds = torch.arange(100, 120)
    whole = ops.warp(images, flow, jitter=1 / 16, seed=seeds)
    assert torch.equal(ops.warp(images[7:9], flow, jitter=1 / 16, seed=seeds[7:9]), whole[7:9])
    assert torch.equal(ops.warp(images, flow, jitter=1 / 16, seed=4), ops.warp(images, flow, jitter=1 / 16, seed=4))
    one, two = (moves(2, 16, 0.1, seed) for seed in (4, 5))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[1], two[0])


def test_jitter_brings_positions_back_into_the_image() -> None:
    white = torch.full((8, 1, 16, 16), 255, dtype=torch.uint8)
    outside = identity(16, 16) + 0.5
    assert ops.warp(white, outside).min() == 0
    assert ops.warp(white, outside, jitter=0.1).min() == 255


@needs_kernels
@pytest.mark.parametrize("isa", [0, 1, 2])
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("shape", [(900, 3, 57, 61), (1000, 3, 64, 64)])
def test_threads_and_instruction_sets_give_the_same_bytes(shape: tuple[int, ...], isa: int, threads: int) -> None:
    """Large enough for several threads and, where planes are whole lines, for writing around the cache."""
    images, fixed = random_bytes(*shape), ops.positions(wanet_flow(*shape[2:], s=2.0))
    out = torch.empty_like(images)
    addresses = images.data_ptr(), fixed.data_ptr(), 0, 0, out.data_ptr()
    extension.load().warp_cpu(*addresses, *shape, 0.0, 0.0, threads, isa)
    assert torch.equal(out, reference.warp(images, fixed, None, None, 0.0, 0.0))


@needs_kernels
def test_images_too_large_for_a_block_are_warped_one_at_a_time() -> None:
    images, fixed = random_bytes(5, 1, 750, 720), ops.positions(wanet_flow(750, 720, s=40.0))
    assert torch.equal(ops.warp(images, fixed), without_kernels(lambda: ops.warp(images, fixed)))


@each_device
def test_positions_of_any_size_are_safe(device: str) -> None:
    """An int32 flow arrives as it is: its corners must neither overflow nor be read from."""
    images, ends = random_bytes(6, 2, 5, 4), torch.iinfo(torch.int32)
    for value in (ends.min, ends.max, 1 << 27, -(1 << 27)):
        flow = torch.full((5, 4, 2), value, dtype=torch.int32)
        for jitter in (0.0, 2.0):
            expected = without_kernels(lambda f=flow, j=jitter: ops.warp(images, f, jitter=j, seed=3))
            got = ops.warp(images.to(device), flow.to(device), jitter=jitter, seed=3)
            assert torch.equal(got.cpu(), expected)


IMAGES = torch.zeros(4, 3, 8, 6, dtype=torch.uint8)
FLOW = identity(8, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES.float()}, "images are float32 of shape (4, 3, 8, 6); expected a tensor of uint8"),
        ({"images": [1]}, "images are a list; expected a tensor of uint8"),
        ({"images": IMAGES[0]}, "images have shape (3, 8, 6); expected (N, C, H, W)"),
        ({"images": torch.empty(0, 1, 8193, 1, dtype=torch.uint8)}, "images are 8193 x 1; expected at most 8192"),
        ({"flow": FLOW[:4]}, "flow has shape (4, 6, 2); expected (8, 6, 2)"),
        ({"flow": FLOW.permute(1, 0, 2)}, "flow has shape (6, 8, 2); expected (8, 6, 2)"),
        ({"flow": FLOW.long()}, "flow is int64 of shape (8, 6, 2); expected floating point of shape (H, W, 2)"),
        ({"flow": [1]}, "flow is a list; expected floating point of shape (H, W, 2)"),
        ({"flow": FLOW / 0}, "flow has values that are not finite"),
        ({"flow": FLOW.to("meta")}, "flow is on meta; expected the device of the images, cpu"),
        ({"rows": torch.tensor([0, 4])}, "row indices are from 0 to 4; expected 0 to 3"),
        ({"rows": torch.tensor([1, 1])}, "rows name an image more than once"),
        ({"rows": torch.tensor([True])}, "rows are a mask of 1; expected one value for each of the 4 images"),
        ({"rows": [0]}, "rows are a list; expected int64 indices or a bool mask (4)"),
        ({"jitter": -0.1}, "jitter is -0.1; expected a number from 0 to 2"),
        ({"jitter": float("nan")}, "jitter is nan; expected a number from 0 to 2"),
        ({"jitter": "0.1"}, "jitter is '0.1'; expected a number from 0 to 2"),
        ({"jitter": 0.1, "seed": 0.5}, "seed is a float; expected an integer or an int64 tensor (4)"),
        ({"jitter": 0.1, "seed": torch.zeros(3).long()}, "seeds have shape (3,); expected (4,), one for each image"),
        ({"jitter": 0.1, "seed": torch.zeros(4)}, "seeds are float32 of shape (4,); expected a tensor of int64"),
    ],
)
def test_wrong_arguments_are_refused_in_one_clear_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        ops.warp(**({"images": IMAGES, "flow": FLOW} | arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_operator_itself_refuses_what_it_cannot_read_safely() -> None:
    good = [IMAGES, ops.positions(FLOW), None, None, 0.0, 0.0]
    for place, wrong in [
        (0, IMAGES.float()),
        (1, FLOW),
        (1, ops.positions(FLOW)[:4]),
        (2, torch.zeros(3, dtype=torch.int64)),
        (3, torch.ones(3, dtype=torch.bool)),
        (4, float("inf")),
        (5, -1.0),
    ]:
        with pytest.raises(UsageError, match="outside its contract"):
            torch.ops.bdaudit.warp(*good[:place], wrong, *good[place + 1 :])


@each_device
@pytest.mark.parametrize("jittered", [False, True])
def test_torch_accepts_the_operator(device: str, jittered: bool) -> None:
    images, fixed = random_bytes(5, 3, 9, 7).to(device), ops.positions(wanet_flow(9, 7)).to(device)
    seeds = torch.arange(5, device=device) if jittered else None
    rows = torch.tensor([True, False, True, True, False], device=device)
    arguments = (images, fixed, seeds, rows, 3000.0, 4000.0)
    results = torch.library.opcheck(torch.ops.bdaudit.warp.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_shapes_are_known_without_data() -> None:
    with FakeTensorMode():
        images = torch.empty(4, 3, 8, 6, dtype=torch.uint8).to(memory_format=torch.channels_last)
        result = ops.warp(images, torch.empty(8, 6, 2, dtype=torch.int32), rows=torch.empty(4).bool(), jitter=0.1)
    assert (result.shape, result.dtype, result.is_contiguous()) == ((4, 3, 8, 6), torch.uint8, True)


def test_a_compiled_caller_is_one_graph() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def poison(images: Tensor, flow: Tensor, rows: Tensor) -> Tensor:
        return ops.warp(images, flow, rows=rows, jitter=1 / 8, seed=3)

    images, flow = random_bytes(4, 3, 8, 8), wanet_flow(8, 8)
    for rows in (torch.tensor([True, False, True, False]), torch.tensor([3, 0])):
        assert torch.equal(poison(images, flow, rows), ops.warp(images, flow, rows=rows, jitter=1 / 8, seed=3))


if extension.has_cuda() and torch.cuda.is_available():

    def test_cuda_work_can_be_captured() -> None:
        images, fixed = random_bytes(64, 3, 32, 32).cuda(), ops.positions(wanet_flow(32, 32)).cuda()
        rows = (torch.arange(64) % 2 == 0).cuda()
        ops.warp(images, fixed, rows=rows, jitter=1 / 32)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.warp(images, fixed, rows=rows, jitter=1 / 32)
        images.copy_(random_bytes(64, 3, 32, 32, seed=1))
        graph.replay()
        assert torch.equal(captured, ops.warp(images, fixed, rows=rows, jitter=1 / 32))

"""blend: the compiled kernels against the torch reference, and the reference against the formula."""

import subprocess
import sys

import pytest
import torch
from common import each_device, image_batches, needs_kernels, random_bytes, row_choices, without_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bdaudit import ops
from bdaudit.errors import UsageError
from bdaudit.ops import extension, reference


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Tensor | None]:
    """Everything that `blend` accepts: shapes, strides, kinds of weight, rows and blocks."""
    n, c = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    h, w = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    rng = torch.Generator().manual_seed(seed)
    images = draw(image_batches(n, c, h, w, seed))
    h, w = images.shape[2:]
    pattern = random_bytes(draw(st.sampled_from([1, c])), h, w, seed=seed + 1)
    shape = draw(st.sampled_from([(), (h, w), (1, h, w), (c, h, w)]))
    weight = torch.rand(shape, generator=rng)
    if draw(st.booleans()):
        weight = weight.round()
    kind = draw(st.sampled_from(["float", "double", "half", "bool", "quantized"]))
    weight = ops.quantize(weight) if kind == "quantized" else weight.to(getattr(torch, kind))
    rows = draw(row_choices(n, seed))
    chosen = len(rows) if rows is not None and rows.dtype == torch.int64 else n
    blocks = None
    if draw(st.booleans()):
        blocks = torch.rand(chosen, draw(st.integers(1, 9)), draw(st.integers(1, 9)), generator=rng) < 0.6
        if draw(st.booleans()):
            blocks = blocks.to(torch.uint8) * 3
    return {"images": images, "pattern": pattern, "weight": weight, "rows": rows, "blocks": blocks}


def pixel_by_pixel(problem: dict[str, Tensor | None]) -> Tensor:
    """The documented meaning, one image at a time and in 64 bits."""
    images, rows, blocks = problem["images"], problem["rows"], problem["blocks"]
    n, _, h, w = images.shape
    indices = list(range(n)) if rows is None else rows.tolist()
    if rows is not None and rows.dtype == torch.bool:
        indices = rows.nonzero().flatten().tolist()
    out = images.to(torch.int64)
    wq = ops.quantize(problem["weight"]).to(torch.int64)
    for place, row in enumerate(indices):
        x = out[row]
        blended = x + ((problem["pattern"].to(torch.int64) - x) * wq + 16384 >> 15)
        if blocks is not None:
            own = blocks[place if rows is not None and rows.dtype == torch.int64 else row]
            for i in range(h):
                for j in range(w):
                    if not own[i * own.shape[0] // h, j * own.shape[1] // w]:
                        blended[:, i, j] = x[:, i, j]
        out[row] = blended
    return out.to(torch.uint8)


def call(problem: dict[str, Tensor | None], device: str = "cpu") -> Tensor:
    moved = {name: None if value is None else value.to(device) for name, value in problem.items()}
    return ops.blend(moved["images"], moved["pattern"], moved["weight"], rows=moved["rows"], blocks=moved["blocks"])


@each_device
@settings(max_examples=80, deadline=None, derandomize=True)
@given(problem=problems())
def test_blend_means_what_its_documentation_says(device: str, problem: dict[str, Tensor | None]) -> None:
    before = problem["images"].clone()
    result = call(problem, device)
    assert result.device.type == device
    assert result.is_contiguous()
    assert torch.equal(result.cpu(), pixel_by_pixel(problem))
    assert torch.equal(problem["images"], before)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problem=problems())
def test_reference_and_kernels_give_the_same_bytes(problem: dict[str, Tensor | None]) -> None:
    assert torch.equal(without_kernels(lambda: call(problem)), call(problem))


@each_device
@pytest.mark.parametrize("shape", [(10, 3, 224, 224), (1500, 3, 55, 53), (3000, 3, 32, 32), (2, 1, 257, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_large_batches_give_the_same_bytes(device: str, shape: tuple[int, ...], masked: bool) -> None:
    """Past the sizes at which kernels use several threads, tiles of the pattern and streaming stores."""
    images, pattern = random_bytes(*shape), random_bytes(*shape[1:], seed=1)
    weight = ops.quantize(torch.rand(shape[2:], generator=torch.Generator().manual_seed(2)))
    weight = weight.expand(shape[1:]).contiguous()
    slots = torch.arange(shape[0]) - shape[0] // 3 if masked else None
    blocks = random_bytes(shape[0], 4, 5, seed=3) % 2 if masked else None
    expected = reference.blend(images, pattern, weight, slots, blocks)
    arguments = [None if x is None else x.to(device) for x in (images, pattern, weight, slots, blocks)]
    result = torch.ops.bdaudit.blend(*arguments)
    assert torch.equal(result.cpu(), expected)


@needs_kernels
@pytest.mark.parametrize("isa", [0, 1, 2])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_and_instruction_sets_give_the_same_bytes(isa: int, threads: int) -> None:
    images, pattern = random_bytes(900, 3, 57, 61), random_bytes(3, 57, 61, seed=1)
    weight = ops.quantize(torch.linspace(0, 1, 57 * 61).view(57, 61)).expand(3, 57, 61).contiguous()
    out = torch.empty_like(images)
    addresses = [t.data_ptr() for t in (images, pattern, weight)]
    extension.load().blend_cpu(*addresses, 0, 0, out.data_ptr(), *images.shape, 0, 0, 0, threads, isa)
    assert torch.equal(out, reference.blend(images, pattern, weight, None, None))


@needs_kernels
def test_threads_follow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, pattern = random_bytes(800, 3, 32, 32), random_bytes(3, 32, 32, seed=1)
    given: list[int] = []
    call = extension.call

    def watched(kernel: str, *arguments: int) -> None:
        given.append(arguments[-1])
        call(kernel, *arguments)

    monkeypatch.setattr(extension, "call", watched)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert ops.backend()["threads"] == threads
            results.append(ops.blend(images, pattern, 0.2))
    finally:
        torch.set_num_threads(before)
    assert given == [1, 2]
    assert torch.equal(*results)


@needs_kernels
def test_a_forked_child_works() -> None:
    """It has torch's OpenMP but none of its threads: torch's own operations hang there."""
    program = (
        "import os, torch; from bdaudit import ops; torch.set_num_threads(2)\n"
        "images = torch.arange(4000 * 768).to(torch.uint8).view(4000, 3, 16, 16)\n"
        "before = ops.blend(images, images[0], 0.3).numpy().tobytes()\n"
        "child = os.fork()\n"
        "if not child: os._exit(ops.blend(images, images[0], 0.3).numpy().tobytes() != before)\n"
        "raise SystemExit(os.waitpid(child, 0)[1])\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_every_pair_of_pixels_is_within_one_level_of_the_formula_and_exact_at_its_ends() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 1, 1, 256)
    p = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    for weight in torch.linspace(0, 1, 21, dtype=torch.float64):
        real = x.double() * (1 - weight) + p.double() * weight
        assert (ops.blend(x, p, float(weight)).double() - real).abs().max() <= 0.51
    assert torch.equal(ops.blend(x, p, 0), x)
    assert torch.equal(ops.blend(x, p, 1), p.expand(256, 1, 1, 256))


def test_a_negative_quantized_weight_counts_as_zero() -> None:
    images, pattern = random_bytes(3, 3, 9, 9), random_bytes(3, 9, 9, seed=1)
    weight = torch.full((9, 9), -5, dtype=torch.int16)
    assert torch.equal(ops.blend(images, pattern, weight), images)


def test_quantize_reaches_both_ends_and_leaves_what_is_quantized() -> None:
    assert ops.quantize(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 16384, 32767]
    assert int(ops.quantize(0.5)) == 16384
    assert ops.quantize(torch.tensor([True, False])).tolist() == [32767, 0]
    done = torch.tensor([7], dtype=torch.int16)
    assert ops.quantize(done) is done


IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
PATTERN = torch.zeros(3, 8, 8, dtype=torch.uint8)
NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES.float()}, "images are float32 of shape (4, 3, 8, 8); expected a tensor of uint8"),
        ({"images": IMAGES[0]}, "images have shape (3, 8, 8); expected (N, C, H, W)"),
        ({"pattern": PATTERN.float()}, "pattern is float32 of shape (3, 8, 8); expected a tensor of uint8"),
        ({"pattern": [1]}, "pattern is a list; expected a tensor of uint8"),
        ({"pattern": PATTERN[:2]}, "pattern has shape (2, 8, 8); expected (3, 8, 8) or (1, 8, 8)"),
        ({"pattern": PATTERN.to("meta")}, "pattern is on meta; expected the device of the images, cpu"),
        ({"weight": 1.5}, "weight is 1.5; expected a value from 0 to 1"),
        ({"weight": -0.1}, "weight is -0.1; expected a value from 0 to 1"),
        ({"weight": NAN}, "weight is nan; expected a value from 0 to 1"),
        ({"weight": "0.5"}, "weight is a str; expected a number or a tensor"),
        ({"weight": torch.tensor([[2.0]])}, "weight has values from 2.0 to 2.0; expected 0 to 1"),
        ({"weight": torch.tensor([NAN, 0.5])}, "weight has values from nan to nan; expected 0 to 1"),
        (
            {"weight": torch.ones(8, 8, dtype=torch.uint8)},
            "weight is uint8 of shape (8, 8); expected floating",
        ),
        (
            {"weight": torch.ones(8)},
            "weight has shape (8,); expected a number, (8, 8), (1, 8, 8) or (3, 8, 8)",
        ),
        ({"weight": torch.ones(2, 8, 8)}, "weight has shape (2, 8, 8); expected a number"),
        ({"rows": torch.tensor([0, 4])}, "row indices are from 0 to 4; expected 0 to 3"),
        ({"rows": torch.tensor([-1])}, "row indices are from -1 to -1; expected 0 to 3"),
        ({"rows": torch.tensor([1, 1])}, "rows name an image more than once"),
        (
            {"rows": torch.tensor([0.5])},
            "rows are float32 of shape (1,); expected int64 indices or a bool mask",
        ),
        ({"rows": torch.tensor([[0]])}, "rows are int64 of shape (1, 1); expected int64 indices"),
        ({"rows": [0]}, "rows are a list; expected int64 indices or a bool mask"),
        ({"rows": torch.tensor([True])}, "rows are a mask of 1; expected one value for each of the 4 images"),
        ({"blocks": torch.ones(3, 2, 2).bool()}, "blocks have shape (3, 2, 2); expected (4, BH, BW)"),
        ({"blocks": torch.ones(4, 0, 2).bool()}, "blocks have shape (4, 0, 2); expected (4, BH, BW)"),
        (
            {"blocks": torch.ones(4, 2, 2)},
            "blocks are float32 of shape (4, 2, 2); expected a tensor of uint8 or",
        ),
        (
            {"blocks": torch.ones(4, 2, 2).bool(), "rows": torch.tensor([0, 1])},
            "blocks have shape (4, 2, 2); expected (2, BH, BW)",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_clear_line(arguments: dict[str, object], message: str) -> None:
    given = {"images": IMAGES, "pattern": PATTERN, "weight": 0.5} | arguments
    with pytest.raises(UsageError) as caught:
        ops.blend(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_operator_itself_refuses_what_it_cannot_read_safely() -> None:
    weight = torch.zeros(3, 8, 8, dtype=torch.int16)
    good = (IMAGES, PATTERN, weight, None, None)
    for place, wrong in [
        (1, PATTERN[:, :4]),
        (2, weight.float()),
        (3, torch.zeros(3, dtype=torch.int64)),
        (4, torch.ones(2, 2, 2, dtype=torch.uint8)),
        (4, torch.ones(4, 0, 2, dtype=torch.uint8)),
    ]:
        with pytest.raises(UsageError, match="outside its contract"):
            torch.ops.bdaudit.blend(*good[:place], wrong, *good[place + 1 :])


def test_slots_without_masks_blend_nothing() -> None:
    weight = torch.full((3, 8, 8), 32767, dtype=torch.int16)
    slots, none = torch.zeros(4, dtype=torch.int64), torch.ones(0, 2, 2, dtype=torch.uint8)
    for compute in (lambda work: work(), without_kernels):
        result = compute(lambda: torch.ops.bdaudit.blend(IMAGES, PATTERN + 9, weight, slots, none))
        assert torch.equal(result, IMAGES)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 3, 0, 8), (4, 0, 8, 8)])
def test_empty_batches_stay_empty(shape: tuple[int, ...]) -> None:
    images = torch.empty(shape, dtype=torch.uint8)
    assert ops.blend(images, images.new_empty(shape[1:]), 0.5).shape == shape


@each_device
@pytest.mark.parametrize("masked", [False, True])
def test_torch_accepts_the_operator(device: str, masked: bool) -> None:
    images, pattern = random_bytes(5, 3, 9, 7).to(device), random_bytes(3, 9, 7, seed=1).to(device)
    weight = ops.quantize(torch.rand(9, 7)).expand(3, 9, 7).to(device)
    slots = torch.tensor([1, -1, 0, 2, -1], device=device) if masked else None
    blocks = (random_bytes(3, 2, 2) % 2).to(device) if masked else None
    results = torch.library.opcheck(torch.ops.bdaudit.blend.default, (images, pattern, weight, slots, blocks))
    assert set(results.values()) == {"SUCCESS"}


def test_shapes_are_known_without_data() -> None:
    with FakeTensorMode():
        images = torch.empty(4, 3, 8, 8, dtype=torch.uint8).to(memory_format=torch.channels_last)
        result = ops.blend(images, torch.empty(1, 8, 8, dtype=torch.uint8), 0.5, rows=torch.empty(4).bool())
    assert (result.shape, result.dtype, result.is_contiguous()) == ((4, 3, 8, 8), torch.uint8, True)


def test_a_compiled_caller_is_one_graph() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def poison(images: Tensor, pattern: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        return ops.blend(images, pattern, weight, rows=rows)

    arguments = random_bytes(4, 3, 8, 8), random_bytes(3, 8, 8, seed=1), torch.rand(8, 8)
    for rows in (torch.tensor([True, False, True, False]), torch.tensor([3, 0])):
        assert torch.equal(poison(*arguments, rows), ops.blend(*arguments, rows=rows))


if extension.has_cuda() and torch.cuda.is_available():

    def test_cuda_work_is_queued_on_the_current_stream_and_can_be_captured() -> None:
        images, pattern = random_bytes(64, 3, 32, 32).cuda(), random_bytes(3, 32, 32, seed=1).cuda()
        expected = ops.blend(images.cpu(), pattern.cpu(), 0.25)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            aside = ops.blend(images, pattern, 0.25)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(aside.cpu(), expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.blend(images, pattern, 0.25)
        images.zero_()
        graph.replay()
        assert torch.equal(captured, ops.blend(images, pattern, 0.25))

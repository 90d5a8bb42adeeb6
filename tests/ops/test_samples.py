"""sample_losses, min_class_distance and class_means against their definitions in 64 bits."""

import math

import pytest
import torch
from common import each_device, needs_kernels, seeded, without_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bdaudit import ops
from bdaudit.errors import UsageError
from bdaudit.ops import extension

NAN, INF = float("nan"), float("inf")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def laid_out(matrix: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "transposed":
        return matrix.t().contiguous().t()
    if layout == "sliced":
        wide = torch.zeros(2 * matrix.shape[0], matrix.shape[1] + 3, dtype=matrix.dtype)
        wide[::2, 2:-1] = matrix
        return wide[::2, 2:-1]
    if layout == "offset":
        flat = torch.zeros(matrix.numel() + 1, dtype=matrix.dtype)
        flat[1:] = matrix.flatten()
        return flat[1:].view(matrix.shape)
    return matrix


layouts = st.sampled_from(["contiguous", "transposed", "sliced", "offset"])
kinds = st.sampled_from([torch.float32, torch.bfloat16])


def defined_losses(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """The definitions, written out."""
    x = logits.double()
    log_p = x - x.logsumexp(dim=1, keepdim=True)
    p = log_p.exp()
    best = x.argmax(dim=1)
    # -log p_y without subtracting two large numbers where the label is the prediction.
    others = (x - x.amax(dim=1, keepdim=True)).exp().scatter(1, best[:, None], 0).sum(dim=1)
    ce = torch.where(labels == best, others.log1p(), -log_p.gather(1, labels[:, None])[:, 0])
    sce = 0.1 * ce + -math.log(1e-4) * -torch.expm1(-ce)
    # The largest p, near 1, from what is missing to it: fp64 rounds that away too.
    entropy = torch.special.entr(p).scatter(1, best[:, None], (p.amax(dim=1) * others.log1p())[:, None]).sum(dim=1)
    return [ce, sce, entropy, p.amax(dim=1)]


@each_device
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([0, 1, 3, 8, 17, 100]),
    c=st.sampled_from([2, 3, 10, 43, 128, 129, 1000]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    dtype=kinds,
    layout=layouts,
    seed=st.integers(0, 2**31),
)
def test_losses_are_those_of_the_definition(
    device: str, n: int, c: int, scale: float, dtype: torch.dtype, layout: str, seed: int
) -> None:
    logits = laid_out((torch.randn(n, c, generator=seeded(seed)) * scale).clamp(-1e4, 1e4).to(dtype), layout)
    labels = torch.randint(0, c, (n,), generator=seeded(seed + 1))
    expected = defined_losses(logits, labels)
    for compute in (lambda call: call(), without_kernels):
        result = compute(lambda: ops.sample_losses(logits.to(device), labels.to(device)))
        for name, got, want in zip(result._fields, result[:4], expected, strict=False):
            # fp32 keeps seven digits of each value, however small: a good fit's loss is no rounding error.
            torch.testing.assert_close(
                got.cpu().double(), want, rtol=2e-5, atol=1e-30, msg=lambda m, n=name: f"{n}: {m}"
            )
        assert torch.equal(result.prediction.cpu(), logits.float().argmax(dim=1))
        assert int(result.nan_rows) == 0


def test_ten_thousand_classes_and_sure_samples() -> None:
    logits = torch.zeros(3, 10_000)
    logits[1, 7], logits[2, 9_999] = 1e4, 30.0
    result = ops.sample_losses(logits, torch.tensor([3, 7, 9_999]))
    assert result.ce[0] == pytest.approx(math.log(10_000), rel=1e-6)
    assert result.entropy[0] == pytest.approx(math.log(10_000), rel=1e-6)
    assert result.ce[1] < 1e-30
    # Far below what 1 + x can show in fp32, and right all the same.
    assert result.ce[2] == pytest.approx(9_999 * math.exp(-30), rel=1e-5)
    assert result.symmetric_ce[2] == pytest.approx((0.1 - math.log(1e-4)) * 9_999 * math.exp(-30), rel=1e-5)


@each_device
def test_rows_without_probabilities_stay_nan_and_are_counted(device: str) -> None:
    logits = torch.tensor(
        [[1.0, 2.0, 0.0], [NAN, 0, 0], [0, 0, NAN], [INF, 0, 0], [INF, INF, 0], [-INF, -INF, -INF], [-INF, 1.0, 2.0]]
    ).to(device)
    labels = torch.tensor([1, 0, 0, 0, 1, 2, 0], device=device)
    for compute in (lambda call: call(), without_kernels):
        result = compute(lambda: ops.sample_losses(logits, labels))
        assert int(result.nan_rows) == 5
        assert result.prediction.tolist() == [1, -1, -1, -1, -1, -1, 2]
        for values in result[:4]:
            assert values.isnan().tolist() == [False, True, True, True, True, True, False]
        assert float(result.ce[6]) == INF
        assert float(result.symmetric_ce[6]) == INF
        assert float(result.entropy[6]) == pytest.approx(0.5822, abs=1e-3)


def test_the_first_of_equal_logits_is_predicted() -> None:
    logits = torch.zeros(40, 300)
    logits[:, 130] = logits[:, 131] = 1
    assert set(ops.sample_losses(logits, torch.zeros(40).long()).prediction.tolist()) == {130}


def defined_distances(features: Tensor, centres: Tensor, exclude: Tensor | int | None) -> Tensor:
    out = []
    for i, row in enumerate(features.double()):
        own = exclude if exclude is None or isinstance(exclude, int) else int(exclude[i])
        allowed = [
            (row - centre).norm()
            for k, centre in enumerate(centres.double())
            if k != own and bool(centre.isfinite().all())
        ]
        out.append(torch.stack(allowed).amin() if allowed else torch.tensor(INF, dtype=torch.float64))
    return torch.stack(out) if out else torch.empty(0, dtype=torch.float64)


@each_device
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([0, 1, 7, 40]),
    d=st.sampled_from([0, 1, 7, 16, 63, 512]),
    k=st.sampled_from([1, 2, 9, 10, 11, 43]),
    dtype=kinds,
    layout=layouts,
    excluded=st.sampled_from(["none", "one", "each"]),
    holes=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_distances_are_those_of_the_definition(
    device: str,
    n: int,
    d: int,
    k: int,
    dtype: torch.dtype,
    layout: str,
    excluded: str,
    holes: bool,
    seed: int,
) -> None:
    features = laid_out(torch.randn(n, d, generator=seeded(seed)).to(dtype), layout)
    centres = laid_out(torch.randn(k, d, generator=seeded(seed + 1)), layout)
    if holes and d:
        centres = centres.clone()
        centres[::3, 0] = torch.tensor([NAN, INF])[torch.arange(len(centres[::3])) % 2]
    exclude: Tensor | int | None = None
    if excluded == "one":
        exclude = k - 1
    elif excluded == "each":
        exclude = torch.randint(-1, k, (n,), generator=seeded(seed))
    expected = defined_distances(features, centres, exclude)
    moved = exclude.to(device) if isinstance(exclude, Tensor) else exclude
    for compute in (lambda call: call(), without_kernels):
        got = compute(lambda: ops.min_class_distance(features.to(device), centres.to(device), exclude=moved))
        torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-6)


@each_device
def test_near_points_far_from_zero_keep_their_distance(device: str) -> None:
    """Expanding the square would leave nothing of it in fp32."""
    centre = torch.full((1, 512), 1000.0, device=device)
    features = centre + torch.tensor([[0.001], [0.0]], device=device)
    expected = (features.double() - centre.double()).norm(dim=1)
    torch.testing.assert_close(ops.min_class_distance(features, centre).double(), expected, rtol=1e-4, atol=0)


@each_device
def test_features_with_nan_have_no_distance(device: str) -> None:
    features = torch.zeros(3, 20, device=device)
    features[1, 19], features[2, 3] = NAN, INF
    for compute in (lambda call: call(), without_kernels):
        result = compute(lambda: ops.min_class_distance(features, torch.ones(4, 20, device=device)))
        assert float(result[0]) == pytest.approx(math.sqrt(20))
        assert math.isnan(float(result[1]))
        assert float(result[2]) == INF


@each_device
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([0, 1, 50, 3000]),
    d=st.sampled_from([0, 1, 17, 64]),
    k=st.sampled_from([1, 2, 10, 200, 500]),
    dtype=kinds,
    layout=layouts,
    seed=st.integers(0, 2**31),
)
def test_means_are_those_of_the_definition(
    device: str, n: int, d: int, k: int, dtype: torch.dtype, layout: str, seed: int
) -> None:
    features = laid_out((torch.randn(n, d, generator=seeded(seed)) + 100).to(dtype), layout)
    labels = torch.randint(0, k, (n,), generator=seeded(seed + 1))
    expected = [features[labels == i].double().mean(dim=0) for i in range(k)]
    for compute in (lambda call: call(), without_kernels):
        means, counts = compute(lambda: ops.class_means(features.to(device), labels.to(device), k))
        assert torch.equal(counts.cpu(), torch.bincount(labels, minlength=k))
        torch.testing.assert_close(means.cpu().double(), torch.stack(expected), rtol=1e-6, atol=0, equal_nan=True)


def test_means_go_into_distances() -> None:
    """BSD's OSS score: the centre of a class without samples is none."""
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 10.0]])
    means, counts = ops.class_means(features, torch.tensor([0, 0, 2]), 3)
    assert counts.tolist() == [2, 0, 1]
    assert means[0].tolist() == [1.0, 0.0]
    assert means[1].isnan().all()
    assert ops.min_class_distance(features, means).tolist() == [1.0, 1.0, 0.0]
    assert ops.min_class_distance(features, means, exclude=0)[0] == 10.0


@needs_kernels
@dtypes
@pytest.mark.parametrize("isa", [0, 1, 2])
def test_instruction_sets_agree_and_threads_change_nothing(isa: int, dtype: torch.dtype) -> None:
    kernels = extension.load()
    logits, labels = torch.randn(5003, 43, generator=seeded()).to(dtype), torch.arange(5003) % 43
    centres = torch.randn(11, 43, generator=seeded(1))
    half = dtype == torch.bfloat16
    results = []
    for threads in (1, 2, 7):
        values, prediction, nans = torch.empty(4, 5003), torch.empty(5003).long(), torch.zeros(1).long()
        addresses = [t.data_ptr() for t in (logits, labels, values, prediction, nans)]
        kernels.sample_losses_cpu(*addresses, 5003, 43, half, threads, isa)
        out = torch.empty(5003)
        kernels.min_class_distance_cpu(
            logits.data_ptr(), centres.data_ptr(), 0, out.data_ptr(), 5003, 43, 11, half, threads, isa
        )
        means, counts = torch.empty(43, 43), torch.zeros(43).long()
        addresses = [t.data_ptr() for t in (logits, labels, means, counts)]
        kernels.class_means_cpu(*addresses, 0, 5003, 43, 43, 16, half, threads, isa)
        results.append((values, prediction, out, means))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    expected = defined_losses(logits, labels)
    torch.testing.assert_close(results[0][0].double(), torch.stack(expected), rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(results[0][2].double(), defined_distances(logits, centres, None), rtol=1e-5, atol=0)


LOGITS, LABELS, CENTRES = torch.zeros(4, 3), torch.zeros(4).long(), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ops.sample_losses(LOGITS.double(), LABELS),
            "logits are float64 of shape (4, 3); expected a tensor of",
        ),
        (lambda: ops.sample_losses([1], LABELS), "logits are a list; expected a tensor of float32 or bfloat16"),
        (lambda: ops.sample_losses(LOGITS[0], LABELS), "logits have shape (3,); expected (N, C)"),
        (lambda: ops.sample_losses(LOGITS[:, :0], LABELS), "expected (N, C) with at least one class"),
        (
            lambda: ops.sample_losses(LOGITS, LABELS[:3]),
            "labels are int64 of shape (3,); expected one for each of the 4",
        ),
        (lambda: ops.sample_losses(LOGITS, LABELS.int()), "labels are int32 of shape (4,); expected a tensor of int64"),
        (lambda: ops.sample_losses(LOGITS, LABELS.to("meta")), "labels are on meta; expected the device of the logits"),
        (lambda: ops.sample_losses(LOGITS, LABELS + 3), "labels are from 3 to 3; expected 0 to 2"),
        (lambda: ops.sample_losses(LOGITS, LABELS - 1), "labels are from -1 to -1; expected 0 to 2"),
        (lambda: ops.min_class_distance(LOGITS.half(), CENTRES), "features are float16 of shape (4, 3); expected"),
        (lambda: ops.min_class_distance(LOGITS, CENTRES.double()), "centres are float64 of shape (2, 3); expected"),
        (lambda: ops.min_class_distance(LOGITS, CENTRES[:, :2]), "centres have shape (2, 2); expected (K, 3)"),
        (lambda: ops.min_class_distance(LOGITS, CENTRES, exclude=2), "exclude is 2; expected a class from 0 to 1"),
        (lambda: ops.min_class_distance(LOGITS, CENTRES, exclude=LABELS - 2), "exclude are from -2 to -2; expected -1"),
        (lambda: ops.min_class_distance(LOGITS, CENTRES, exclude=LABELS[:1]), "exclude are int64 of shape (1,)"),
        (lambda: ops.class_means(LOGITS, LABELS, 0), "classes is 0; expected a positive integer"),
        (lambda: ops.class_means(LOGITS, LABELS + 2, 2), "labels are from 2 to 2; expected 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused_in_one_clear_line(call: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda op: op.sample_losses(LOGITS.double(), LABELS),
        lambda op: op.sample_losses(LOGITS, LABELS[:2]),
        lambda op: op.sample_losses(LOGITS, LABELS.int()),
        lambda op: op.min_class_distance(LOGITS, CENTRES.double(), None),
        lambda op: op.min_class_distance(LOGITS, CENTRES[:, :2], None),
        lambda op: op.min_class_distance(LOGITS, CENTRES, LABELS[:2]),
        lambda op: op.class_means(LOGITS, LABELS[:2], 3),
        lambda op: op.class_means(LOGITS, LABELS, 0),
    ],
)
def test_the_operators_themselves_refuse_what_they_cannot_read_safely(call: object) -> None:
    with pytest.raises(UsageError, match="outside its contract"):
        call(torch.ops.bdaudit)


@each_device
def test_a_label_outside_is_never_read_from(device: str) -> None:
    """Inside torch.compile, and from who calls the operator itself, labels arrive unchecked."""
    logits, labels = torch.zeros(3, 4, device=device), torch.tensor([0, 4, -(2**62)], device=device)
    values, prediction, nans = torch.ops.bdaudit.sample_losses(logits, labels)
    assert values[0].isnan().tolist() == [False, True, True]
    assert prediction.tolist() == [0, 0, 0]
    assert int(nans) == 0
    _, counts = torch.ops.bdaudit.class_means(logits, labels, 2)
    assert counts.tolist() == [1, 0]


@each_device
def test_torch_accepts_the_operators(device: str) -> None:
    logits, labels = torch.randn(6, 5, generator=seeded()).to(device), (torch.arange(6) % 5).to(device)
    op = torch.ops.bdaudit
    for operator, arguments in [
        (op.sample_losses, (logits, labels)),
        (op.min_class_distance, (logits, logits[:3].clone(), labels)),
        (op.class_means, (logits, labels, 5)),
    ]:
        results = torch.library.opcheck(operator.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


def test_shapes_are_known_without_data_and_a_compiled_caller_is_one_graph() -> None:
    with FakeTensorMode():
        losses = ops.sample_losses(torch.empty(4, 3).bfloat16(), torch.empty(4).long())
        assert (losses.ce.shape, losses.ce.dtype, losses.prediction.dtype) == ((4,), torch.float32, torch.int64)

    @torch.compile(backend="eager", fullgraph=True)
    def scores(features: Tensor, labels: Tensor) -> Tensor:
        means, _ = ops.class_means(features, labels, 5)
        return ops.min_class_distance(features, means, exclude=labels) + ops.sample_losses(features, labels).ce

    features, labels = torch.randn(20, 5, generator=seeded()), torch.arange(20) % 5
    means, _ = ops.class_means(features, labels, 5)
    expected = ops.min_class_distance(features, means, exclude=labels) + ops.sample_losses(features, labels).ce
    assert torch.equal(scores(features, labels), expected)


def test_no_gradient_flows() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    assert not ops.sample_losses(logits, torch.zeros(2).long()).ce.requires_grad


if extension.has_cuda() and torch.cuda.is_available():

    def test_cuda_work_can_be_captured() -> None:
        features, labels = torch.randn(64, 10, generator=seeded()).cuda(), (torch.arange(64) % 10).cuda()

        def work() -> tuple[Tensor, Tensor, Tensor]:
            means, _ = ops.class_means(features, labels, 10)
            distance = ops.min_class_distance(features, means, exclude=labels)
            return distance, ops.sample_losses(features, labels).ce, means

        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = work()
        features.copy_(torch.randn(64, 10, generator=seeded(1)))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, work(), strict=True))

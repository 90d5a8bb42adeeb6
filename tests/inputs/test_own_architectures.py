"""The user's own networks: a function in a Python file, run because the user named it and for no other reason."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from bdaudit.errors import CheckpointError, UsageError
from bdaudit.inputs.architectures import fit, fresh, from_user, own, parse
from bdaudit.inputs.architectures.matching import plain_state
from bdaudit.inputs.checkpoint import read_checkpoint, save_checkpoint
from bdaudit.inputs.classifier import ArchSpec, Classifier
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.runtime import generator

MODELS = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes, channels, width):
            super().__init__()
            self.eyes = nn.Conv2d(channels, width, 3, padding=1)
            self.norm = nn.BatchNorm2d(width)
            self.answer = nn.Linear(width, num_classes)

        def forward(self, x):
            return self.answer(self.norm(self.eyes(x)).relu().mean((2, 3)))

    class Wrapped(nn.Module):
        def __init__(self, *args):
            super().__init__()
            self.model = Net(*args)

        def forward(self, x):
            return self.model(x)

    def make_model(num_classes, channels=3, width=4):
        return Net(num_classes, channels, width)

    def wrapped(num_classes, channels):
        return Wrapped(num_classes, channels, 4)

    def ten_of_rgb():
        return Net(10, 3, 4)

    def passes_on(**options):
        return make_model(**options)

    def perceptron(num_classes, hidden):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    ONE = Net(10, 3, 4)

    def always_the_same():
        return ONE
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write(tmp_path / "models.py", MODELS)


def write(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source))
    return path


def build(text: str, *, channels: int = 3, classes: int = 5) -> Classifier:
    pixels = usual_preprocessing((channels, 8, 8))
    return fresh(from_user(text), pixels, [str(k) for k in range(classes)], generator(0)).eval()


def shapes(model: Classifier) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in plain_state(model.body).items()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("function", ["make_model:width=6", "wrapped", "perceptron:hidden=5"])
def test_a_function_gets_classes_and_channels_and_they_are_read_back_off_its_weights(
    models: Path, function: str, channels: int
) -> None:
    if function.startswith("perceptron") and channels == 1:
        with pytest.raises(UsageError, match=r"fails on a 1x8x8 image \(RuntimeError"):
            build(f"{models}:{function}", channels=channels)
        return
    model = build(f"{models}:{function}", channels=channels, classes=7)
    assert model(torch.zeros(2, channels, 8, 8, dtype=torch.uint8)).shape == (2, 7)
    found = fit(from_user(f"{models}:{function}"), shapes(model))
    assert (found.num_classes, found.channels) == (7, channels)
    assert model.arch == found.arch


def test_a_function_gets_only_what_its_signature_accepts(models: Path) -> None:
    assert build(f"{models}:ten_of_rgb", classes=10).num_classes == 10
    assert build(f"{models}:passes_on:width=9").head.in_features == 9
    with pytest.raises(UsageError, match=r"5 class names for a head with 10 outputs"):
        build(f"{models}:ten_of_rgb")
    with pytest.raises(UsageError, match=r"models.py:make_model has no option 'widht' .*did you mean width"):
        from_user(f"{models}:make_model:widht=3")


def test_classes_may_be_networks_themselves(tmp_path: Path) -> None:
    path = write(
        tmp_path / "nets.py",
        MODELS
        + "\n    class Small(Net):\n        def __init__(self, num_classes):\n            super().__init__(num_classes, 3, 2)\n",
    )
    assert build(f"{path}:Small").head.in_features == 2


def test_weights_depend_on_the_generator_alone(models: Path) -> None:
    spec, pixels = from_user(f"{models}:make_model"), usual_preprocessing((3, 8, 8))
    before = torch.get_rng_state()
    a, b, c = (fresh(spec, pixels, "ab", generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, c.head.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_a_function_that_hands_out_one_module_still_gives_separate_models(models: Path) -> None:
    first, second = (build(f"{models}:always_the_same", classes=10) for _ in range(2))
    with torch.no_grad():
        first.head.weight.fill_(3)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_the_name_is_absolute_to_rebuild_by_and_short_to_show(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(models.parent)
    spec = from_user("models.py:make_model:width=2")
    monkeypatch.chdir("/")
    assert spec == ArchSpec(f"{models.resolve()}:make_model", {"width": 2})
    assert str(spec) == "models.py:make_model(width=2)"
    assert fresh(spec, usual_preprocessing((3, 8, 8)), "ab", generator(0)).arch == spec


BROKEN = [
    ("def f(:", "f", r"models.py: cannot be run: SyntaxError in line 1"),
    ("x = 1\nimport no_such_module", "f", r"cannot be run: ModuleNotFoundError in line 2: No module named"),
    ("import sys\nsys.exit(3)", "f", r"cannot be run: SystemExit in line 2: 3"),
    ("\0", "f", r"cannot be run: (SyntaxError|ValueError).*null bytes"),
    ("def g(): pass\nh = 3", "f", r"has no function f \(it has: g\)"),
    ("f = 3", "f", r"f is of type int, expected a function"),
    ("def f(): return 3", "f", r"f returned an object of type int, expected a torch.nn.Module"),
    ("def f(num_classes):\n    raise OSError('a\\nb\\x1b')", "f", "f failed: OSError in line 2: a\ufffdb\ufffd"),
    ("def f(depth): pass", "f", r"f needs depth: give --arch models.py:f:depth=N"),
    ("def f(): pass", "f:width=2", r"f has no option 'width' \(it takes: none\)"),
    ("def f(width): pass", "f:width=x", r"expected option=number"),
    ("from torch import nn\ndef f(): return nn.Conv2d(3, 4, 3)", "f", r"has no linear classification layer"),
    ("from torch import nn\ndef f(): return nn.LazyLinear(4)", "f", r"has lazy layers"),
    (
        "from torch import nn\ndef f(num_classes): return nn.Sequential(nn.Linear(8, num_classes), nn.Linear(8, 3))",
        "f",
        r"its last linear layer, 1, has 3 outputs for 5 classes",
    ),
    (
        "from torch import nn\nclass N(nn.Linear):\n    def forward(self, x): return [x]\ndef f(num_classes): return N(192, num_classes)",
        "f",
        r"f gives a list for one image, expected \(1, 5\)",
    ),
    ("f = print", "", r"expected FILE.py:FUNCTION"),
]


@pytest.mark.parametrize(("source", "function", "message"), BROKEN)
def test_what_goes_wrong_in_the_file_is_one_line(tmp_path: Path, source: str, function: str, message: str) -> None:
    (tmp_path / "models.py").write_text(source)
    with pytest.raises(UsageError, match=message) as e:
        build(f"{tmp_path / 'models.py'}:{function}")
    assert "\n" not in str(e.value)
    assert e.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone.py: no such file"):
        from_user(f"{tmp_path / 'gone.py'}:f")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError, match=r"folder.py: no such file"):
        from_user(f"{tmp_path / 'folder.py'}:f")


def test_only_what_the_user_typed_runs_a_file(tmp_path: Path) -> None:
    """`parse` and an ArchSpec by itself, which may come from a file, never do."""
    bait = write(tmp_path / "bait.py", f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(UsageError, match="is Python code, which only you may name"):
        parse(f"{bait}:make_model")
    with pytest.raises(UsageError, match="is Python code, which only you may name"):
        fit(ArchSpec(f"{bait}:make_model"), {"w.weight": (3, 3)})
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match="has no function"):
        from_user(f"{bait}:make_model")
    assert (tmp_path / "ran").exists()


def test_a_file_is_run_once_and_again_when_it_was_changed(tmp_path: Path) -> None:
    count = "from pathlib import Path\nlog = Path(__file__).with_name('log')\nlog.write_text(log.read_text() + 'x')\n"
    path, log = tmp_path / "models.py", tmp_path / "log"
    log.write_text("")
    path.write_text(f"{count}from torch import nn\ndef f(): return nn.Linear(192, 5)\n")
    first = own.family(from_user(f"{path}:f").name).source
    from_user(f"{path}:f")
    assert log.read_text() == "x"
    path.write_text(path.read_text() + "# changed\n")
    assert own.family(from_user(f"{path}:f").name).source != first
    assert log.read_text() == "xx"


def test_what_lies_beside_the_file_can_be_imported_and_replaces_nothing_installed(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("from torch import nn\nLAYER = nn.Linear\n")
    (tmp_path / "tabulate.py").write_text("raise RuntimeError('the wrong one')\n")
    path = tmp_path / "models.py"
    path.write_text(
        "import sys\nsys.modules.pop('tabulate', None)\nimport tabulate\nfrom beside_it import LAYER\n"
        "from torch import nn\ndef f(num_classes): return nn.Sequential(nn.Flatten(), LAYER(192, num_classes))\n"
    )
    before = list(sys.path)
    assert build(f"{path}:f").num_classes == 5
    assert sys.path == before
    assert {p.name for p in tmp_path.iterdir()} == {"beside_it.py", "tabulate.py", "models.py"}, "bytecode was written"


def test_bytecode_that_lies_beside_a_file_is_not_what_runs(tmp_path: Path) -> None:
    """Python itself trusts a .pyc whose time and size fit, whatever code it holds; what runs is what was hashed."""
    import importlib.util
    import os
    import py_compile

    path = tmp_path / "models.py"
    good, evil = "x = 1 # pad\n", "raise OSError\n"
    evil = evil.ljust(len(good))
    good = good.ljust(len(evil))
    path.write_text(evil)
    os.utime(path, (1e9, 1e9))
    py_compile.compile(str(path), importlib.util.cache_from_source(str(path)))
    path.write_text(good)
    os.utime(path, (1e9, 1e9))
    with pytest.raises(UsageError, match="has no function f"):
        from_user(f"{path}:f")


def test_what_the_file_prints_does_not_mix_with_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "models.py", "print('loading')\n" + textwrap.dedent(MODELS))
    build(f"{path}:make_model")
    assert capsys.readouterr() == ("", "loading\n")


@pytest.mark.parametrize("saved", ["", "module.", "model.", "module.model.", "1."])
@pytest.mark.parametrize("function", ["make_model", "wrapped"])
def test_weights_load_and_go_back_whatever_wraps_the_file_or_the_network(
    models: Path, tmp_path: Path, function: str, saved: str
) -> None:
    model = build(f"{models}:{function}", channels=1)
    state = {saved + name: t.clone() for name, t in plain_state(model.body).items()}
    torch.save({"net": state}, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    spec = from_user(f"{models}:{function}")
    read = checkpoint.classifier(arch=spec, preprocessing=model.preprocessing)
    assert torch.equal(read.head.weight, model.head.weight)
    save_checkpoint(read, tmp_path / "back.pt", like=checkpoint)
    back = torch.load(tmp_path / "back.pt", weights_only=True)["net"]
    assert list(back) == list(state)
    assert all(torch.equal(back[name], t) for name, t in state.items())


def test_weights_that_do_not_fit_are_named(models: Path, tmp_path: Path) -> None:
    state = build(f"{models}:make_model").body.state_dict() | {"norm.weight": torch.ones(9)}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(
        CheckpointError,
        match=r"m.pt: its weights do not fit models.py:make_model\(\): norm.weight is \(9,\) in the file",
    ):
        read_checkpoint(tmp_path / "m.pt").match(from_user(f"{models}:make_model"))


def test_our_own_file_names_the_function_and_never_runs_it(models: Path, tmp_path: Path) -> None:
    model = build(f"{models}:make_model:width=3")
    save_checkpoint(model, tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.header is not None and checkpoint.header.arch is not None
    assert checkpoint.header.arch.name == "models.py:make_model"
    assert checkpoint.arch is None
    with pytest.raises(
        CheckpointError, match=r"maker's, models.py:make_model:width=3; .* give --arch FILE.py:FUNCTION"
    ):
        checkpoint.classifier()
    read = checkpoint.classifier(arch=from_user(f"{models}:make_model:width=3"))
    assert torch.equal(read.head.weight, model.head.weight)
    assert read.preprocessing == model.preprocessing


def test_a_header_cannot_reach_a_function_even_if_the_user_ran_it_before(models: Path, tmp_path: Path) -> None:
    spec = from_user(f"{models}:make_model")
    model = build(f"{models}:make_model")
    document = {"state_dict": model.body.state_dict(), "bdaudit": {"version": 1, "arch": {"name": spec.name}}}
    torch.save(document, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="bdaudit runs no code that a file names"):
        read_checkpoint(tmp_path / "m.pt").match()


def test_networks_on_other_types_come_back_in_float32(tmp_path: Path) -> None:
    path = write(
        tmp_path / "models.py",
        "from torch import nn\ndef f(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes)).double()\n",
    )
    assert {p.dtype for p in build(f"{path}:f").parameters()} == {torch.float32}
    assert isinstance(build(f"{path}:f").body, nn.Sequential)


def test_the_documentations_example_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    path = write(tmp_path / "models.py", text.partition("```python\n")[2].partition("```")[0])
    assert build(f"{path}:make_model:width=3", channels=1).head.in_features == 3


def test_a_function_is_asked_for_what_the_weights_have(tmp_path: Path) -> None:
    """Not for arbitrary figures, which it may refuse."""
    path = write(
        tmp_path / "models.py",
        MODELS
        + """
    def picky(num_classes, channels):
        assert (num_classes, channels) == (43, 1)
        return Net(num_classes, channels, 3)
    """,
    )
    found = fit(from_user(f"{path}:picky"), shapes(build(f"{path}:picky", channels=1, classes=43)))
    assert (found.num_classes, found.channels) == (43, 1)

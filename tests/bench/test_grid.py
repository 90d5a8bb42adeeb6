"""Grids: what a file stands for, and one clear line for whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.benches import SMALL, grid_of

from bdaudit.bench.grid_file import parse_grid, read_grid
from bdaudit.bench.store import coordinates
from bdaudit.errors import BdauditError, InputError
from bdaudit.flow.contamination import Contamination


def test_the_cells_are_the_product_of_the_axes_with_the_last_one_running_fastest() -> None:
    places = grid_of(attacks=["badnets", "blended"], budgets=[20, 40], seeds=[0, 1]).places()
    assert len(places) == 2 * 2 * 2 * 2
    assert [(p.attack.name, p.defense.name, p.budget, p.seed) for p in places[:3]] == [
        ("badnets", "ft", 20, 0), ("badnets", "ft", 20, 1), ("badnets", "ft", 40, 0)
    ]  # fmt: skip


def test_an_option_that_is_a_list_stands_for_an_entry_a_value() -> None:
    grid = grid_of(defenses=[{"name": "fst", "alpha": [0.1, 0.2]}, "ft"])
    assert [d.label for d in grid.defenses] == ["fst alpha=0.1", "fst alpha=0.2", "ft"]
    assert [d.plugin.model_dump().get("alpha") for d in grid.defenses] == [0.1, 0.2, None]


def test_options_for_a_plugin_hold_wherever_it_is_used_and_an_entry_overrides_them() -> None:
    grid = grid_of(defenses=["ft", "ft epochs=7"], options={"defense": {"ft": {"epochs": 3, "lr": 0.5}}})
    assert [(d.plugin.model_dump()["epochs"], d.plugin.model_dump()["lr"]) for d in grid.defenses] == [
        (3, 0.5),
        (7, 0.5),
    ]


def test_an_exclusion_takes_out_the_cells_that_match_it_on_every_axis() -> None:
    rule = {"defenses": "ft", "contamination": [0.1]}
    places = grid_of(defenses=["ft epochs=1", "ft epochs=2", "fst"], contamination=[0, 0.1], exclude=[rule]).places()
    assert [(p.defense.label, str(p.contamination)) for p in places] == [
        ("ft epochs=1", "0"), ("ft epochs=2", "0"), ("fst", "0"), ("fst", "0.1")
    ]  # fmt: skip


def test_the_two_pools_may_be_contaminated_apart() -> None:
    grid = grid_of(contamination=[0.1, {"flagged": 0.2}])
    assert grid.contamination == (Contamination(0.1, 0.1), Contamination(0.0, 0.2))


@pytest.mark.parametrize(
    ("malicious", "pairs"),
    [
        (["badnets", "blended"], ["badnets badnets", "badnets blended", "blended badnets", "blended blended"]),
        (["own", "blended"], ["badnets own", "badnets blended", "blended own"]),
        ("own", ["badnets own", "blended own"]),
    ],
)
def test_flagged_images_may_be_another_attacks(malicious: Any, pairs: list[str]) -> None:
    """An attack's own images are there once, under one of their two names."""
    places = grid_of(attacks=["badnets", "blended"], defenses="pl", malicious=malicious).places()
    assert [f"{at['attack']} {at['malicious']}" for at in map(coordinates, places)] == pairs
    assert [p.donor.label for p in places if p.donor] == [b for a, b in map(str.split, pairs) if b not in (a, "own")]


def test_an_exclusion_may_name_whose_images_are_flagged() -> None:
    rule = {"attacks": "blended", "malicious": ["own", "badnets"]}
    with pytest.raises(InputError, match="malicious has no 'badnets'"):
        grid_of(attacks=["badnets", "blended"], exclude=[rule])
    grid = grid_of(attacks=["badnets", "blended"], malicious=["own", "badnets"], exclude=[rule])
    assert {p.attack.label for p in grid.places()} == {"badnets"}


def test_a_grid_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text('data = "digits"\nattacks = "badnets"\ndefenses = ["ft"]\nseeds = [3]\n')
    grid = read_grid(tmp_path / "g.toml")
    assert (grid.seeds, [p.name for p in grid.probes]) == ((3,), ["retune", "qra"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"atacks": ["badnets"]}, "unknown axis or table 'atacks'; did you mean attacks"),
        ({"attacks": ["badnet"]}, "there is no attack named 'badnet'; did you mean badnets"),
        ({"defenses": ["ft epoch=3"]}, "ft has no option 'epoch'; did you mean epochs"),
        ({"defenses": ["ft epochs=no"]}, "-o epochs: .*integer"),
        ({"defenses": ["ft epochs"]}, "expected option=value once each, got 'epochs'"),
        ({"defenses": [3]}, 'expected "NAME option=value'),
        ({"defenses": []}, "defenses is missing or empty"),
        ({"seeds": []}, "seeds: .*at least 1 item"),
        ({"seeds": [1.5]}, "seeds.0: .*integer"),
        ({"seeds": [True]}, "seeds.0: .*integer"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"budgets": [0]}, "budgets.0: .*greater than or equal to 1"),
        ({"defenses": ["ft", "ft epochs=20"]}, "ft epochs=20 is there twice"),
        ({"contamination": [1.0]}, "contamination.0"),
        ({"contamination": [0.1, {"clean": 0.1, "flagged": 0.1}]}, "contamination: 0.1 is there twice"),
        ({"probes": ["transfer"]}, r"transfer tries other purified models: name defenses under transfer_to in \[audit\]"),
        ({"audit": {"transfer_to": ["fst"]}}, "no probe of the grid tries other models; add transfer"),
        ({"probes": ["transfer"], "audit": {"transfer_to": ["fts"]}}, r"\[audit\]: transfer_to: there is no defense"),
        ({"probes": ["transfer"], "audit": {"transfer_to": ["ft epochs=1"]}}, "cells of ft epochs=1 have no other model"),
        ({"malicious": ["wanet"]}, "malicious: 'wanet' is none of the grid's attacks"),
        ({"malicious": ["badnet"]}, "'badnet' is none of the grid's attacks; did you mean badnets"),
        ({"malicious": ["own", "own"]}, "malicious: own is there twice"),
        ({"malicious": ["badnets", "badnets"]}, "malicious: badnets is there twice"),
        ({"malicious": []}, "malicious is empty"),
        ({"malicious": [{"name": "badnets"}]}, "is none of the grid's attacks"),
        ({"victim": {"epoch": 3}}, r"\[victim\]: unknown setting 'epoch'; did you mean epochs"),
        ({"audit": {"evaluate": 0}}, r"\[audit\]: evaluate: .*greater"),
        ({"audit": {"policy": {"max_asr": 0.1}}}, r"\[audit.policy\]: unknown setting 'max_asr'; did you mean max_"),
        ({"options": {"defense": {"fts": {}}}}, "no defense named 'fts'"),
        ({"options": {"defence": {}}}, "expected one of attack, defense, probe"),
        ({"exclude": [{"defense": "ft"}]}, "unknown axis 'defense'; did you mean defenses"),
        ({"exclude": [{"defenses": "pl"}]}, "defenses has no 'pl'"),
        ({"exclude": [{}]}, "would leave out everything"),
        ({"defenses": [{"name": "ft", "epochs": []}]}, "defenses: ft: epochs is an empty list"),
        ({"exclude": [{"defenses": ["ft", "fst"]}]}, "the grid is empty: the exclusions leave no cell"),
        ({"seeds": list(range(200_000))}, "400,000 cells, at most 100,000"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_one_clear_line(changes: dict[str, Any], words: str) -> None:
    """Every mistake says what was got and what to do; the command ends with exit code 2."""
    with pytest.raises(BdauditError, match=words) as caught:
        parse_grid({**SMALL, **changes}, "grid.toml")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("grid.toml: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_toml_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "g.toml").write_text("attacks = [")
    with pytest.raises(InputError, match="cannot be read as TOML"):
        read_grid(tmp_path / "g.toml")

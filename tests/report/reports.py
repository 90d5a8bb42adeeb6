"""Reports to render: one as an audit writes it, one as an attacker would."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from bdaudit.report.schema import Exhibit, Finding, Granted, Policy, Report, SelfCheck

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]></script></style></svg>-->",
    "'+alert(1)+'{{ 7*7 }}{% raw %}",
    "\x00\x07\x1b[31m\u2028\u202e\u200b\ufffe\x85",
    "| `a` | **b** | [x](javascript:alert(1))\n\n# heading\n",
    "$\\frac{1}{2}$ $x^2$",
    "_hidden",
    "\N{PILE OF POO}\u0639\u0631\u0628\u4e2d",
    "x" * 100_000,
    "",
]


def png(width: int = 620, height: int = 316) -> str:
    """A small valid PNG in base64."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def row(probe: str, subject: Any, metric: str, value: float, n: int | None = 900, **more: Any) -> Finding:
    """A finding whose interval is value +- 1.5 points."""
    ends = {"low": max(0.0, value - 0.015), "high": min(1.0, value + 0.015), **more}
    return Finding(probe=probe, subject=subject, metric=metric, value=value, n=n, **ends)


def audited() -> Report:
    """FST on BadNets: gone right after purification, back after retuning."""
    draws = {"seeds": 3, "spread": 0.03}
    return Report(
        title="bdaudit audit of model.pt purified by fst",
        verdict="fail",
        reasons=[
            "attack success after reactivation by retune (P-ASR) is 94.0% [92.5%, 95.5%] on 900 images, above the 20.0% allowed",
            "attack success after reactivation by qra (P-ASR) is 20.5% [19.0%, 22.0%] on 900 images: the 20.0% allowed lies inside the interval",
            "attack success after purification (O-ASR) is 0.4% [0.0%, 1.9%] on 900 images, within the 10.0% allowed",
            "clean accuracy went from 89.0% to 87.0%",
        ],
        outcomes=["fail", "inconclusive", "pass", "pass"],
        findings=[
            row("evaluation", "suspect", "c_acc", 0.89, 1000),
            row("evaluation", "suspect", "o_asr", 0.99),
            row("evaluation", "suspect", "robust_acc", 0.01),
            row("evaluation", "purified", "c_acc", 0.87, 1000),
            row("evaluation", "purified", "o_asr", 0.004),
            row("evaluation", "purified", "robust_acc", 0.85),
            row("evaluation", "purified", "der", 0.983, None, low=None, high=None),
            row("evaluation", "reference", "c_acc", 0.88, 1000),
            row("evaluation", "reference", "o_asr", 0.02),
            row("retune", "purified", "p_asr", 0.94, **draws),
            row("retune", "purified", "p_c_acc", 0.88, 1000, **draws),
            row("retune", "null", "p_asr", 0.03, variant="patch on purified"),
            row("retune", "null", "p_asr", 0.05, variant="noise on purified"),
            row("retune", "null", "p_asr", 0.04, variant="stripes on purified"),
            row("retune", "reference", "p_asr", 0.04, **draws),
            row("retune", "reference", "p_c_acc", 0.88, 1000, **draws),
            row("retune", "null", "p_asr", 0.02, variant="patch on reference"),
            row("retune", "null", "p_asr", 0.06, variant="noise on reference"),
            row("qra", "purified", "p_asr", 0.205),
            row("qra", "purified", "c_asr", 0.1),
            row("qra", "reference", "p_asr", 0.03),
            row("qra", "reference", "c_asr", 0.02),
        ],
        exhibits=[
            Exhibit(
                probe="retune",
                metric="p_asr",
                title="Attack success while the model is retuned",
                caption="5 poisoned images among 1000; mean of 3 draws. Null triggers were never seen by the model: "
                "they show what any model learns from so few images.",
                x_label="epoch",
                y_label="attack success rate",
                x=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
                curves={
                    "purified": [0.004, 0.31, 0.72, 0.88, 0.92, 0.94],
                    "null: patch": [0.01, 0.02, 0.02, 0.03, 0.03, 0.03],
                    "null: noise": [0.02, 0.02, 0.04, 0.04, 0.05, 0.05],
                    "null: stripes": [0.01, 0.01, 0.03, 0.03, 0.04, 0.04],
                    "reference": [0.02, 0.02, 0.03, 0.04, 0.04, 0.04],
                },
            ),
            Exhibit(
                probe="qra",
                metric="p_asr",
                title="Perturbations that reactivate",
                caption="Triggered images, the same after the perturbation, and the difference times 10.",
                picture=png(),
            ),
            Exhibit(
                probe="weights",
                metric="distance",
                title="How far each layer moved from the suspect",
                x_label="from input to output",
                y_label="relative distance",
                x=[float(i) for i in range(21)],
                x_names=[f"layer{1 + i // 5}.{i % 5 // 2}.conv{1 + i % 2}" for i in range(20)] + ["linear"],
                curves={"purified": [0.01 * i for i in range(20)] + [0.9], "reference": [0.8] * 21},
            ),
            Exhibit(
                probe="features",
                metric="near_target",
                title="Penultimate features before purification",
                points={
                    "clean images of other classes": [(-1.0 - i % 7 / 10, i / 50) for i in range(100)],
                    "clean images of class 0, the target": [(1.0 + i % 3 / 10, i / 20) for i in range(20)],
                    "triggered images": [(1.5 + i % 5 / 10, i / 30) for i in range(50)],
                },
            ),
        ],
        notes=[
            "retune: 380 benign images were at hand, the paper uses 1000",
            "qra: the perturbation also moves clean images to the target class (C-ASR 10.0%)",
        ],
        self_checks=[
            SelfCheck(name="no image counts twice", subject="images", outcome="sound", detail="3 were there twice"),
            *(
                SelfCheck(name="gives the same answer twice", subject=s, outcome="sound")
                for s in ("suspect", "purified")
            ),
            SelfCheck(
                name="gives the same answer twice", subject="reference", outcome="left-out", detail="30 of 32 differ"
            ),
        ],
        inputs={
            "model": {"path": "model.pt", "sha256": "9f" * 32},
            "clean": {"path": "clean/", "n": 500, "sha256": "3c" * 32},
            "attack": {"path": "run/", "trigger": {"kind": "patch", "size": [3, 3]}, "sha256": "a1" * 32},
        },
        granted=[
            Granted(plugin="fst", input="model", source="model.pt"),
            Granted(plugin="fst", input="clean", source="clean/ (500 images)"),
            Granted(plugin="ep", input="trigger", source="run/attack.json", oracle=True),
        ],
        policy=Policy(),
        provenance={
            "bdaudit": "0.1.0",
            "options": {"fst": {"epochs": 10, "alpha": 0.1}, "retune": {"poisoned": 5, "draws": 3}},
            "seed": 0,
            "device": "cpu",
            "versions": {"torch": "2.15.0", "python": "3.11.2"},
            "git": None,
            "times": {"started": "2025-01-01T00:00:00Z", "seconds": {"purify": 12.3, "retune": 40.1}},
        },
    )


def crowded() -> Report:
    """An audit that cannot decide, with fifteen exhibits of five probes."""
    curves = {"purified": [0.01, 0.4, 0.94], "reference": [0.02, 0.03, 0.04]}
    points = {"clean": [(0.0, 1.0), (1.0, 3.0)], "triggered": [(4.0, 1.0), (5.0, 2.0)]}
    exhibits = [
        Exhibit(
            probe=probe, metric="p_asr", title=f"{what} of {probe}", caption=f"{what}, as {probe} saw it.",
            x_label="step", y_label="rate", curves=curves if i == 1 else {}, points=points if i == 2 else {},
            picture=png(620, 200) if i == 0 else "",
        )
        for probe in ("retune", "qra", "lmc", "trajectory", "features")
        for i, what in enumerate(("A picture", "Curves", "A map"))
    ]  # fmt: skip
    return audited().model_copy(update={"verdict": "inconclusive", "exhibits": exhibits})


def hostile() -> Report:
    """Every string an attack, every list ragged, every number out of range."""
    text = dict(enumerate(HOSTILE))
    findings = [
        Finding(
            probe=("evaluation", "retune", HOSTILE[i % len(HOSTILE)])[i % 3],
            subject=("suspect", "purified", "reference", "null")[i % 4],
            metric=("o_asr", "p_asr", "c_asr", "c_acc", HOSTILE[i % len(HOSTILE)])[i % 5],
            value=(0.5, -3.0, 1e308, 7.25)[i % 4],
            low=(0.9, None, -1e308)[i % 3],
            high=(0.1, 1e308)[i % 2],
            n=(None, 0, -5, 10**400)[i % 4],
            seeds=-1,
            spread=(None, 1e308)[i % 2],
            variant=HOSTILE[i % len(HOSTILE)],
        )
        for i in range(240)
    ]
    return Report(
        title=HOSTILE[0],
        verdict="inconclusive",
        reasons=list(HOSTILE),
        outcomes=["pass"],
        findings=findings,
        exhibits=[
            Exhibit(
                probe=HOSTILE[0],
                metric=HOSTILE[1],
                title=HOSTILE[i],
                caption=HOSTILE[i],
                x_label=HOSTILE[i],
                y_label=HOSTILE[i],
                curves={h: [0.1, -1e308, 1e308][: 1 + i % 3] for h in HOSTILE},
                x=[1e308, -1e308][:i],
                x_names=HOSTILE if i == 1 else [],
                points={h: [(1e308, -1e308), (0.0, float(j)), (-1e308, 5e-324)][i:] for j, h in enumerate(HOSTILE)},
                picture=HOSTILE[i],
            )
            for i in range(3)
        ],
        notes=list(HOSTILE),
        self_checks=[SelfCheck(name=h, subject=h, outcome="caveat", detail=h) for h in HOSTILE],
        inputs={h: {h: [h, {h: None}], "deep": _deep(80)} for h in text.values()},
        granted=[Granted(plugin=h, input=h, source=h, oracle=bool(i % 2)) for i, h in text.items()],
        policy=Policy(require=list(HOSTILE)),
        provenance={"times": {h: h for h in HOSTILE}, "deep": _deep(80), "big": 10**5000, "nan": float("nan")},
    )


def empty() -> Report:
    """Nothing measured, nothing recorded."""
    return Report(verdict="pass", reasons=[], findings=[], inputs={}, granted=[], policy=Policy(), provenance={})


def huge() -> Report:
    """More of everything than anybody would read."""
    return Report(
        verdict="fail",
        reasons=["no"] * 5000,
        findings=[
            row(f"p{i % 300}", "purified", f"m{i % 70}" if i % 2 else "p_asr", 0.5, variant=f"v{i}")
            for i in range(6_000)
        ],
        exhibits=[Exhibit(probe="p", metric="m", title=f"e{i}") for i in range(2000)],
        notes=["n"] * 5000,
        self_checks=[SelfCheck(name=str(i), subject=str(i), outcome="sound") for i in range(5000)],
        inputs={str(i): {"n": i} for i in range(5000)},
        granted=[Granted(plugin="p", input=str(i), source="s") for i in range(5000)],
        policy=Policy(),
        provenance={str(i): list(range(100)) for i in range(2000)},
    )


def _deep(levels: int) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = {"in": [value]}
    return value

"""Triggers inverted from a model, as findings, as a picture, and as a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import save
from torch import Tensor

from bdaudit import ops
from bdaudit.errors import one_line
from bdaudit.inputs.pool import Pool
from bdaudit.report.pictures import sheet, triptych
from bdaudit.report.schema import Exhibit, Finding, Measurement
from bdaudit.report.statistics import rate_finding
from bdaudit.training.bti import Reversed
from bdaudit.training.inversion import Inversion

SHOWN = 8
"""Classes, or images, in a picture."""
FEWEST = 5
"""Classes of which one can stand out: of two, both always lie at .67; of three or four, one spacing decides."""


def named(classes: Sequence[str], c: int) -> str:
    """Name a class for a reader: `class 3 (dress)`."""
    return f"class {c} ({one_line(classes[c], 40)})"


def by_index(found: Inversion, first: int | None = None) -> list[int]:
    """All classes, `first` first, then by how much they stand out."""
    ranked: list[int] = found.index.argsort(descending=True).tolist()
    return sorted(ranked, key=lambda c: c != first)


def inversion_findings(found: Inversion, classes: Sequence[str], order: Sequence[int], probe: str) -> list[Finding]:
    """List every class's anomaly index, mask and success on the suspect, in the order given."""
    rows: list[Finding] = []
    for c in order:
        name = named(classes, c)
        numbers = {"anomaly_index": float(found.index[c]), "mask_l1": float(found.l1[c])}
        rows += [
            Finding(probe=probe, subject="suspect", metric=m, value=v, low=None, high=None, n=None, variant=name)
            for m, v in numbers.items()
        ]
        rows.append(rate_finding(probe, "suspect", "asr", found.success[c], name))
    return rows


def inversion_exhibit(
    found: Inversion, classes: Sequence[str], order: Sequence[int], image: Tensor, probe: str, title: str, said: str
) -> Exhibit:
    """Show the inverted triggers and one image, uint8 (1, C, H, W), with each; `said` ends the first sentence."""
    shown = list(order[:SHOWN])
    inverted = torch.stack([(found.masks[c] * found.patterns[c]).round().to(torch.uint8) for c in shown])
    stamped = torch.cat([ops.blend(image, found.patterns[c], found.masks[c]) for c in shown])
    return Exhibit(
        probe=probe,
        metric="anomaly_index",
        title=title,
        caption="Mask times pattern, and one image with it, by class and anomaly index: "
        f"{'; '.join(f'{named(classes, c)} {float(found.index[c]):.2f}' for c in shown)}. {said} "
        "The trigger of a backdoor that is a patch is far smaller than the others.",
        picture=sheet({"trigger": inverted, "image with": stamped}),
    )


def cleanse_measurement(found: Inversion, classes: Sequence[str], images: Tensor, probe: str) -> Measurement:
    """Report what Neural Cleanse found: a verdict on every class, the triggers as a picture, masks and patterns.

    images: uint8 (N, C, H, W), the first of which is shown with the triggers.
    """
    order, least = by_index(found, found.target), found.anomaly
    if found.flagged:
        who = ", ".join(f"{named(classes, c)}, anomaly index {float(found.index[c]):.2f}" for c in found.flagged)
        note = f"{probe} detects a backdoor: {who}, where above {least:g} stands out"
    elif len(classes) < FEWEST:
        note = (
            f"{probe} left the model as it was and concludes nothing: of {len(classes)} classes none can stand out from the "
            f"rest (the index wants {FEWEST} or more)"
        )
    else:
        note = (
            f"{probe} detects no backdoor and left the model as it was: no class stands out (the nearest: "
            f"{named(classes, order[0])}, anomaly index {float(found.index[order[0]]):.2f}, where above {least:g} stands "
            "out); triggers that change the whole image, or each image differently, leave no small mask to be found"
        )
    first = "The first stands out most." if found.flagged else "None stands out."
    return Measurement(
        findings=inversion_findings(found, classes, order, probe),
        exhibits=[inversion_exhibit(found, classes, order, images[:1].cpu(), probe, "Inverted triggers", first)],
        notes=[note],
        artifacts={f"{probe}-triggers.safetensors": save({"masks": found.masks, "patterns": found.patterns})},
    )


@torch.no_grad()
def reversal_measurement(found: Reversed, classes: Sequence[str], clean: Pool, probe: str) -> Measurement:
    """Report the trigger that BTI reversed: where its images go, eight of them, and the generator to keep."""
    rate = found.rate
    name = named(classes, found.target)
    before = clean.images[:SHOWN].to(found.generator.mean.device)
    return Measurement(
        findings=[rate_finding(probe, "suspect", "reversed_share", rate, name)],
        exhibits=[
            Exhibit(
                probe=probe,
                metric="reversed_share",
                title="The reversed trigger",
                caption=f"Clean images, the same as the generator poisons them, and the difference times 10. Of "
                f"{rate.n} clean images so changed, {rate.successes} become {name}.",
                picture=triptych(before, found.generator(before), ("clean", "reversed", "diff x10")),
            )
        ],
        notes=[
            f"{probe} reversed a trigger from the suspect: {rate.value:.0%} of the clean images that it changes become {name}, "
            "the target that it detects; every model yields some trigger, so that this alone is no sign of a backdoor"
        ],
        artifacts={
            f"{probe}-generator.safetensors": save(
                {k: v.cpu().contiguous() for k, v in found.generator.state_dict().items()}
            )
        },
    )

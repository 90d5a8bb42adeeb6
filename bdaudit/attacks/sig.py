"""SIG: a sinusoid across the image."""

from collections.abc import Iterable
from typing import Literal

import torch

from bdaudit.attacks.base import Attack, CleanLabel
from bdaudit.attacks.triggers import AddTrigger, Trigger, sinusoid, stripes
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl


class SIG(CleanLabel):
    """Superimpose a sinusoid on images of the target class, whose labels stay right.

    Barni et al. 2019: x' = x + v with v(i, j) = D sin(2 pi j f / m), j the column and m the width, clipped. FST, D3:
    D = 40, f = 6, added; BSD (as ABL): the sinusoid, brought to [0, 255], mixed in by .2.
    """

    name = "sig"
    presets = {
        "fst": {"reading": "additive", "amplitude": 40.0, "frequency": 6.0, "rate": 0.05, "rate_of": "all"},
        "bsd": {"reading": "blended", "ratio": 0.2, "frequency": 6.0, "rate": 0.25, "rate_of": "target"},
    }

    reading: Literal["additive", "blended"] = option(
        "additive", "whether the sinusoid is added or mixed in", cite="FST B.2; BSD C.3: blended; cards D-12"
    )
    amplitude: float = option(40.0, "D, in levels of 255, of the added sinusoid", cite="FST B.2", ge=1, le=255)
    frequency: float = option(6.0, "f, periods in the width of the image", cite="FST B.2", gt=0)
    ratio: float = option(
        0.2, "share of the sinusoid that is mixed in, with -o reading=blended", cite="ABL", gt=0, le=1
    )

    def make_trigger(self, shape: tuple[int, int, int]) -> Trigger:
        if self.reading == "blended":
            return stripes(shape, self.ratio, self.frequency, upright=True)
        wave = self.amplitude * sinusoid(shape[2], self.frequency)
        return AddTrigger(wave.round().to(torch.int16).expand(shape).contiguous())


@hookimpl
def bdaudit_attacks() -> Iterable[type[Attack]]:
    return [SIG]

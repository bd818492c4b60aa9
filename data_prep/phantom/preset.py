"""How hard the phantoms are: every knob of the generator in one frozen description, and the named presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.phantom.realism import HARD, LEFT_SEGMENTS, LEFT_VIEWS, RIGHT_SEGMENTS, RIGHT_VIEWS, STANDARD, Realism
from deepcoro.errors import UserError

# Segments in which the easy preset places lesions, with relative frequency. Thin and far segments (d1, om1, pda, ...)
# are left out: at 96 x 96 pixels a stenosis there is below one pixel, and an occlusion changes few.
EASY_LEFT = {"prox_lad": 1.0, "mid_lad": 1.0, "prox_lcx": 1.0}
EASY_RIGHT = {"prox_rca": 1.0, "mid_rca": 1.0, "dist_rca": 1.0}


@dataclass(frozen=True)
class Preset:
    """The difficulty of a phantom data set. Shares are probabilities in [0, 1], lengths are mm."""

    name: str
    lesion_share: float = 0.6
    """Share of trees with at least one lesion; near a half there is most to tell apart."""
    second_lesion_share: float = 0.1
    """Share of diseased trees with a second lesion (never more than two)."""
    occlusion_share: float = 0.7
    """Share of lesions that are occlusions; the left main is never occluded."""
    cto_share: float = 0.3
    """Share of occlusions that are chronic: a tapered stump, where an acute one ends bluntly."""
    percents: tuple[int, ...] = (70, 80, 90)
    """Diameter stenoses, each equally likely."""
    lesion_length: tuple[float, float] = (0.45, 0.7)
    """Length of a stenosis as a share of its segment."""
    segments: dict[str, dict[str, float]] = field(default_factory=lambda: {"left": EASY_LEFT, "right": EASY_RIGHT})
    """Tree -> segment -> relative frequency of lesions."""
    vessel_scale: float = 1.2
    """All vessel radii are multiplied by this, 0.5 to 1.5; thinner is harder."""
    anatomy_variation: float = 0.7
    """Scale of every anatomical random variation, 0 (the same heart for everybody) to 1.5; more is harder."""
    ramus_share: float = 0.15
    """Share of left trees with a ramus intermedius (bx)."""
    views: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"left": ("LAO 35 CRA 25",), "right": ("LAO 30 CRA 20",)}
    )
    """Tree -> standard views, in the order of acquisition; one cine each, in rich presets a choice of them."""
    angle_jitter: float = 2.5
    """Standard deviation of the C-arm around its standard view, degrees, 0 to 10; more is harder."""
    field_of_view: float = 128.0
    """Width of the image at the isocentre, 100 to 250; widened where a tree would not fit. Wider is harder."""
    motion_scale: float = 1.0
    """Multiplies heart motion, 0 (the heart stands still) to 1.5; more is harder."""
    attenuation: float = 0.36
    """Linear attenuation of undiluted contrast, 1/mm, 0.1 to 0.6; less is harder."""
    photons: float = 2500.0
    """Detected photons per pixel of a 128 x 128 image in the brightest place (scales with pixel area)."""
    texture: float = 1.0
    """Scale of the anatomical background noise, 0 to 3; more is harder."""
    realism: Realism | None = None
    """What the rich phantoms have on top. None: the plain phantom, right-dominant, of stenoses and occlusions only;
    with it, `second_lesion_share`, `occlusion_share`, `cto_share`, `percents`, `lesion_length` and `photons` give way
    to knobs of its own."""

    @property
    def tortuosity(self) -> float:
        """Multiplies the waves of the vessels' courses."""
        return self.realism.tortuosity if self.realism else 1.0


def _rich(name: str, realism: Realism, **knobs: Any) -> Preset:
    return Preset(
        name=name,
        segments={"left": LEFT_SEGMENTS, "right": RIGHT_SEGMENTS},
        views={"left": LEFT_VIEWS, "right": RIGHT_VIEWS},
        realism=realism,
        **knobs,
    )


PRESETS = {
    "easy": Preset(name="easy"),
    "standard": _rich("standard", STANDARD, vessel_scale=1.05, anatomy_variation=1.0, ramus_share=0.25, angle_jitter=4),
    "hard": _rich(
        "hard", HARD, vessel_scale=0.9, anatomy_variation=1.4, ramus_share=0.3, angle_jitter=7, texture=1.5,
        lesion_share=0.7,
    ),
}  # fmt: skip


def preset_named(name: str) -> Preset:
    """Return the preset of that name; raise UserError naming the known ones if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown phantom preset {name!r}; known presets: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def with_views(preset: Preset, num_views: tuple[int, int]) -> Preset:
    """Return a rich preset with another range of cines a study.

    Raises:
        UserError: the preset is plain, or the range is not 2 to 9 (the standard views that there are).
    """
    if preset.realism is None:
        raise UserError(f"phantom preset {preset.name!r} has one cine of each tree; standard and hard have more views")
    most = sum(len(views) for views in preset.views.values())
    if not 2 <= num_views[0] <= num_views[1] <= most:
        raise UserError(f"phantom views must be two numbers of 2 to {most}, low and high, got {num_views}")
    return replace(preset, realism=replace(preset.realism, num_views=num_views))

"""How hard the phantoms are: every knob of the generator in one frozen description, and the named presets."""

from dataclasses import dataclass, field

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
    """Share of trees with at least one lesion."""
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
    """All vessel radii are multiplied by this."""
    anatomy_variation: float = 0.7
    """Scale of every anatomical random variation; 0 gives the same heart to everybody."""
    ramus_share: float = 0.15
    """Share of left trees with a ramus intermedius (bx)."""
    views: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"left": ("LAO 35 CRA 25",), "right": ("LAO 30 CRA 20",)}
    )
    """Tree -> standard views, in the order of acquisition; one cine each."""
    angle_jitter: float = 2.5
    """Standard deviation of the C-arm around its standard view, degrees."""
    field_of_view: float = 128.0
    """Width of the image at the isocentre; widened where a tree would not fit."""
    motion_scale: float = 1.0
    """Multiplies heart motion; 0 stops the heart."""
    attenuation: float = 0.36
    """Linear attenuation of undiluted contrast, 1/mm."""
    photons: float = 2500.0
    """Detected photons per pixel of a 128 x 128 image in the brightest place (scales with pixel area)."""
    texture: float = 1.0
    """Scale of the anatomical background noise."""


PRESETS = {"easy": Preset(name="easy")}


def preset_named(name: str) -> Preset:
    """Return the preset of that name; raise UserError naming the known ones if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown phantom preset {name!r}; known presets: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]

"""The knobs of the rich phantoms (presets standard and hard): what the plain phantom of the easy preset leaves out.

Shares are probabilities in [0, 1]; a pair (low, high) is a range that is drawn from evenly; lengths are mm.
"""

from dataclasses import dataclass, field

from deepcoro.errors import UserError
from deepcoro.reports.vocabulary import DOMINANCES

LEFT_VIEWS = ("RAO 20 CAU 25", "AP CAU 25", "LAO 45 CAU 30", "AP CRA 35", "LAO 40 CRA 25", "RAO 10 CRA 35")
RIGHT_VIEWS = ("LAO 40", "LAO 20 CRA 25", "RAO 30")

# Where disease sits, relative frequency: the proximal and middle parts of the three great vessels first.
LEFT_SEGMENTS = {
    "left_main": 0.5,
    "prox_lad": 1.5,
    "mid_lad": 1.5,
    "dist_lad": 0.5,
    "d1": 0.6,
    "d2": 0.3,
    "bx": 0.4,
    "prox_lcx": 1.0,
    "mid_lcx": 0.9,
    "dist_lcx": 0.5,
    "om1": 0.7,
    "om2": 0.3,
    "lvp": 0.3,
    "pda": 0.4,
    "posterolateral": 0.4,
}
RIGHT_SEGMENTS = {"prox_rca": 1.2, "mid_rca": 1.4, "dist_rca": 0.8, "pda": 0.5, "posterolateral": 0.5}
KINDS = ("focal", "eccentric", "diffuse", "bifurcation", "total", "cto", "stent", "calcium")


@dataclass(frozen=True)
class Realism:
    """Anatomy, disease, acquisition and wording of the rich phantoms; each knob says what makes it harder.

    Raises:
        UserError: a knob is out of its range, or names a dominance or a kind of lesion that there is not.
    """

    dominance: dict[str, float] = field(default_factory=lambda: {"right": 0.75, "left": 0.125, "balanced": 0.125})
    """Relative frequency of right, left and balanced dominance; evenly mixed is hardest, for the trees vary most."""
    missing_branch_share: float = 0.15
    """Share of optional branches (d1, d2, om1, om2) that a heart lacks, each by itself; more makes naming harder."""
    lvp_share: float = 0.35
    """Share of hearts that are not left-dominant and have an LVP; left-dominant ones always have it."""
    branch_size: float = 0.15
    """Spread of a branch's radius (standard deviation of its logarithm), 0 to 0.5; more is harder."""
    twigs: float = 1.5
    """Side branches without a name on every 40 mm of vessel, 0 to 4; each may hide a lesion or look like one."""
    tortuosity: float = 1.1
    """Multiplies the waves of the vessels' courses, 0 to 4; 1 is the plain phantom's, more is harder."""

    max_lesions: int = 3
    """Most lesions of a tree, 1 to 6, a bifurcation counting once; more are harder to tell completely."""
    more_lesions_share: float = 0.4
    """Probability of each further lesion after the first; more is harder."""
    kinds: dict[str, float] = field(
        default_factory=lambda: {
            "focal": 3.0,
            "eccentric": 2.0,
            "diffuse": 1.5,
            "bifurcation": 1.2,
            "total": 0.9,
            "cto": 0.9,
            "stent": 1.5,
            "calcium": 0.8,
        }
    )
    """Relative frequency of the kinds of lesions; occlusions are the easiest to see, stents and calcium the hardest."""
    percent: tuple[int, int] = (40, 95)
    """Diameter stenosis, 1 to 99; a lower end below 30 and an upper end near 99 are harder (mild beside none)."""
    percent_step: int = 5
    """Stenoses are multiples of this many percent, 1 to 25; 1 makes any percent, which is harder to tell."""
    focal_length: tuple[float, float] = (8.0, 18.0)
    """Of focal and eccentric stenoses and those of bifurcations, mm, 2 to 40; shorter is harder."""
    diffuse_length: tuple[float, float] = (22.0, 45.0)
    """Of diffuse stenoses and calcified parts, mm, 10 to 80, at most nine tenths of their segment."""
    stent_length: tuple[float, float] = (12.0, 28.0)
    """Of stents, mm, 6 to 60; shorter is harder."""
    restenosis_share: float = 0.5
    """Share of stents with in-stent restenosis."""
    calcification_share: float = 0.35
    """Share of stenoses and occlusions that are calcified; calcium hides the lumen's edge."""
    thrombus_share: float = 0.15
    """Share of focal stenoses of 50 percent or more with a thrombus; three times as many of the acute occlusions."""
    slow_flow_share: float = 0.4
    """Share of stenoses of 90 percent or more behind which contrast flows slower (TIMI 2) or stops short (TIMI 1)."""
    collaterals_share: float = 0.7
    """Share of chronic occlusions whose distal vessel fills, late and faintly, through collaterals; more is harder."""

    num_views: tuple[int, int] = (2, 8)
    """Cines a study, both ends included, 2 to 9; about a third of them of the right tree. Fewer hide more."""
    num_frames: int = 48
    """Frames of a cine at 15 a second where the user names no number, 2 to 1000: 48 are 3.2 s."""
    frame_rates: dict[float, float] = field(default_factory=lambda: {15.0: 3.0, 7.5: 1.0, 30.0: 1.0})
    """Relative frequency of frames a second; a cine lasts equally long at each. Lower rates are harder."""
    heart_rate: tuple[float, float] = (55.0, 95.0)
    """Beats a minute, 30 to 200; faster is harder."""
    breath_share: float = 0.2
    """Share of cines in which the patient breathes deeply; in the others the breath is held nearly still."""
    breath: tuple[float, float] = (4.0, 9.0)
    """Amplitude of a deep breath along the body, mm, 0 to 30; more is harder."""
    panning_share: float = 0.15
    """Share of cines in which the table moves; more is harder."""
    panning: tuple[float, float] = (8.0, 25.0)
    """How far the table moves, mm, 0 to 80; more is harder."""
    photons: tuple[float, float] = (2000.0, 8000.0)
    """Detected photons per pixel of a 128 x 128 image behind nothing, 20 or more; fewer are noisier."""
    weak_injection_share: float = 0.15
    """Share of cines with poor filling: dilute contrast that comes in pulses and ends early; more is harder."""
    weak_injection: tuple[float, float] = (0.45, 0.75)
    """Concentration of contrast in a poor injection, as a share of a good one's, 0.1 to 1; less is harder."""
    reflux_share: float = 0.4
    """Share of cines with contrast in the aortic root, which hides the ostium."""
    sternal_wires_share: float = 0.10
    """Share of patients with sternal wires; this and the next two are distractors, more is harder."""
    pacing_wire_share: float = 0.08
    """Share of patients with a pacing wire to the apex of the right ventricle; it moves with the heart."""
    ecg_leads_share: float = 0.25
    """Share of patients with ECG cables in the picture."""
    varied_reports: bool = True
    """Reports in one of several wordings and orders, one a study; off: the canonical wording, which is easier."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_share"):
                _check(name, 0 <= value <= 1, "a probability, 0 to 1", value)
            elif name in RANGES:
                low, high = RANGES[name]
                ends = value if isinstance(value, tuple) else (value, value)
                _check(name, low <= ends[0] <= ends[1] <= high, f"from {low} to {high}, the lower end first", value)
        for name, known in (("dominance", DOMINANCES), ("kinds", KINDS)):
            value = getattr(self, name)
            right = set(value) <= set(known) and min(value.values(), default=-1) >= 0 and sum(value.values()) > 0
            _check(name, right, f"frequencies of {', '.join(known)}", value)
        _check("frame_rates", min(self.frame_rates, default=0) > 0, "frequencies of rates above 0", self.frame_rates)


RANGES: dict[str, tuple[float, float]] = {
    "branch_size": (0, 0.5),
    "twigs": (0, 4),
    "tortuosity": (0, 4),
    "max_lesions": (1, 6),
    "percent": (1, 99),
    "percent_step": (1, 25),
    "focal_length": (2, 40),
    "diffuse_length": (10, 80),
    "stent_length": (6, 60),
    "num_views": (2, 9),
    "num_frames": (2, 1000),
    "heart_rate": (30, 200),
    "breath": (0, 30),
    "panning": (0, 80),
    "photons": (20, 1e6),
    "weak_injection": (0.1, 1),
}


def _check(name: str, ok: bool, wanted: str, value: object) -> None:
    if not ok:
        raise UserError(f"phantom knob {name} must be {wanted}; got {value!r}")


STANDARD = Realism()
HARD = Realism(
    dominance={"right": 0.6, "left": 0.2, "balanced": 0.2},
    missing_branch_share=0.25,
    branch_size=0.25,
    twigs=2.2,
    tortuosity=1.8,
    max_lesions=4,
    more_lesions_share=0.55,
    percent=(10, 99),
    percent_step=1,
    focal_length=(5.0, 14.0),
    frame_rates={15.0: 2.0, 7.5: 2.0, 30.0: 1.0},
    heart_rate=(50.0, 120.0),
    breath_share=0.4,
    breath=(5.0, 14.0),
    panning_share=0.35,
    panning=(10.0, 40.0),
    photons=(250.0, 1500.0),
    weak_injection_share=0.35,
    weak_injection=(0.3, 0.7),
    sternal_wires_share=0.3,
    pacing_wire_share=0.25,
    ecg_leads_share=0.5,
)

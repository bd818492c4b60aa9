"""The same phantom with a lesion and without it: pairs for the erasure test (`deepcoro.metrics.erasure`)."""

from dataclasses import replace

import numpy as np

from data_prep.phantom.disease import BIFURCATIONS
from data_prep.phantom.lumen import open_lumen
from data_prep.phantom.study import TREES, Patient
from deepcoro.errors import UserError

_STREAM = 2_000_000  # numbers the random numbers of a pair's calcium and collaterals apart from all others


def erase_lesion(patient: Patient, seed: int, segment: str) -> tuple[Patient, Patient]:
    """Return the patient with the lesion of `segment` and without it; give both to `take_cines` with the same seed.

    The two share anatomy, motion, ejection fraction, views, injections and background: all that differs is the lesion
    and what it does (contrast comes again to what lay behind an occlusion). The grain of the noise may differ.

    Args:
        patient: from `draw_patient`.
        seed: of the data set. Specks of calcium and collaterals are laid anew from it, in both alike, except that where
            the lesion is calcified the collaterals of others in its tree may run otherwise without it.
        segment: which lesion to take out.

    Raises:
        UserError: the patient has no lesion there, or one of a bifurcation with a Medina class.
    """
    side = next((t for t in TREES if any(lesion.finding.segment == segment for lesion in patient.lesions[t])), None)
    if side is None:
        there = ", ".join(finding.segment for finding in patient.findings) or "none"
        raise UserError(f"phantom patient {patient.index} has no lesion in {segment!r} to erase; it has: {there}")
    bifurcation = {name for group in BIFURCATIONS if segment in group for name in group}
    if any(lesion.finding.medina and lesion.finding.segment in bifurcation for lesion in patient.lesions[side]):
        raise UserError(
            f"phantom patient {patient.index} may have {segment!r} diseased as part of a bifurcation, whose Medina "
            "class would be wrong without it; erase another lesion"
        )
    rest = tuple(lesion for lesion in patient.lesions[side] if lesion.finding.segment != segment)
    erased = next(lesion for lesion in patient.lesions[side] if lesion.finding.segment == segment)
    pair = []
    for lesions in ((*rest, erased), rest):  # the erased one last: the others draw the same numbers in both
        rng = np.random.default_rng([seed, patient.index, _STREAM])
        lumen = open_lumen(patient.trees[side], lesions, rng)
        pair.append(
            replace(
                patient,
                lesions=patient.lesions if erased in lesions else {**patient.lesions, side: rest},
                lumens={**patient.lumens, side: lumen},
            )
        )
    return pair[0], pair[1]

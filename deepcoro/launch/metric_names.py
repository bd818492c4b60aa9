"""The names of the metrics that a run reports while it trains, known before it starts.

A sweep's objective is one of them: a name that nobody reports would be missed only after the first trial's hours.
"""

from __future__ import annotations

from deepcoro.config import Config
from deepcoro.evaluation.lent_boxes import SCORES as GROUNDING
from deepcoro.evaluation.wording import MEANS
from deepcoro.metrics.agreement import SCORES
from deepcoro.reports.vocabulary import SEGMENTS

_RECALL_AT, _NDCG_AT = (1, 5, 10), (5, 10)
_THRESHOLDS = ("stenosis_50", "stenosis_70")


def reported_metrics(config: Config) -> set[str]:
    """Every metric of the validation patients that a run of ``config`` may report.

    Some are left out where the data has nothing to measure them by: recall at 10 of 8 studies, the F1 of a sign that
    nobody has. Losses are none of them: they are of the training patients, and their total hangs on their weights.
    """
    names = {"data/valid_share"}
    if config.loss.is_used("contrastive"):
        names |= _retrieval("retrieval", of_trees=config.data.unit == "video")
        if config.data.unit == "video":
            names |= _retrieval("retrieval/study", of_trees=False)
    if config.loss.is_used("captioning"):
        names |= {f"captioning/{name}" for name in _captioning(config)}
    if config.measures_grounding:
        asks = config.captioning.tasks.aref > 0  # else where the decoder looks is all there is
        names |= {f"grounding/{name}" for name in ("pointed_lesions", "pointing_reachable")}
        names |= {f"grounding/{name}" for name in ("lesions", "unreadable") if asks}
        for name in (*(GROUNDING if asks else ()), "pointing"):
            names |= {f"grounding/{name}{more}" for more in ("", "_above_chance", "_beside_another_lesion")}
    if config.measures_reconstruction:
        names |= {f"masked_modeling/{name}" for name in ("mse", "pixel_mse", "pixel_mse_beside_interpolation")}
    return names


def _retrieval(prefix: str, of_trees: bool) -> set[str]:
    oracle = ["_beside_tree_oracle"] if of_trees else []  # of rows that show one tree, as a whole study does not
    recalls = [f"recall_at_{k}{more}" for k in _RECALL_AT for more in ("", *oracle)]
    of_direction = [*recalls, *(f"ndcg_at_{k}" for k in _NDCG_AT), "mrr", "median_rank"]
    names = {f"{prefix}/{side}/{name}" for side in ("report_to_video", "video_to_report") for name in of_direction}
    return names | {f"{prefix}/{name}" for name in ("alignment", "uniformity_video", "uniformity_text")}


def _captioning(config: Config) -> set[str]:
    names = {"readable", "finding_f1", "finding_precision", "finding_recall"}
    if config.data.unit == "video":
        names |= {"tree_accuracy", "finding_f1_beside_tree_oracle"}
    names |= {"not_visible/ifr_f1", "grade_kappa", "truth_read"}
    names |= {"stenosis_mae", "stenosis_told", "stenosis_mae_lesions", "hallucinated_findings", "missed_findings"}
    names |= {f"{sign}_f1" for sign in (*_THRESHOLDS, "cto", "calcification", "thrombus", "stent", "restenosis")}
    names |= {f"{sign}_{score}" for sign in _THRESHOLDS for score in ("precision", "recall")}
    names |= {f"{sign}_macro_{score}" for sign in ("finding", *_THRESHOLDS) for score in SCORES}
    names |= {f"{sign}_{score}/{s}" for sign in ("finding", "stenosis_50") for score in SCORES for s in SEGMENTS}
    names |= {f"stenosis_70_{score}/left_main" for score in SCORES}
    together = config.needs_clip_texts and config.level("captioning") == "clip"
    if not together:  # a study's text that is put together of its clips' has no wording of its own
        names |= {"exact_match", "bleu", *MEANS, "dominance_accuracy"}
    if config.evaluation.finding_probabilities == "always" and not together:
        names |= {f"segment_{name}" for name in ("probabilities_share", "auroc_segments", "auroc", "brier", "ece")}
        names |= {f"segment_auroc/{segment}" for segment in SEGMENTS}
    return names

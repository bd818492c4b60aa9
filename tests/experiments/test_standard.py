"""The table of differences is of the test cines' written reports, whatever order the patients came in."""

import json

from deepcoro.config import Config
from deepcoro.data.tables import PreparedDataset
from experiments.standard import experiment, format_differences

LAD = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}
WRITTEN = {True: "Left coronary tree. Proximal LAD: 80% stenosis (severe).", False: "Left coronary tree. LAD: normal."}


def test_the_table_says_who_is_beaten(make_dataset, tiny_config, tmp_path):
    ill = {f"s{number}": number % 3 == 0 for number in range(24)}
    studies = [
        {"study_id": name, "split": "test" if number >= 9 else "train", "dominance": "right"}
        | {"findings": [LAD] if ill[name] else []}
        for number, name in enumerate(ill)
    ]
    videos = [{"study_id": name, "coronary_tree": "left", "uri": "videos/one.avi"} for name in ill]
    config = tiny_config(f"data.path={make_dataset(tmp_path / 'prepared', studies, videos)}")
    units = PreparedDataset.open(config.data.path).units("test", "video")
    rows = [{"true": "-", "written": WRITTEN[ill[study]]} for study in units.column("study_id")]
    rows[0]["written"] = None  # could not be read: counts nowhere
    (tmp_path / "reports_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = [line.split("  ") for line in format_differences(tmp_path, config).splitlines()[2:]]
    table = [[cell.strip() for cell in line if cell.strip()] for line in table]
    told = {(row[0], row[1]): row[2:] for row in table}
    # Of 14 rows 4 or 5 are ill, so who says it always has 2 * ill / (14 + ill).
    of_rows = sum(ill[study] for study in units.column("study_id")[1:])
    always = f"{2 * of_rows / (14 + of_rows):.3f}"
    assert told["finding_f1", "same segments"][:2] == ["1.000", always]
    assert told["finding_f1", "blind"][:2] == told["finding_f1", "tree oracle"][:2] == ["1.000", always]
    assert told["finding_f1", "most common report"] == ["1.000", "0.000", "1.000", "1.000 to 1.000", "yes"]
    assert told["stenosis_mae_lesions", "most common report"][:3] == ["0.000", "80.000", "-80.000"]


def test_the_experiment_asks_for_boxes():
    config: Config = experiment()
    assert config.captioning.tasks.in_use and not config.loss.is_used("masked_modeling")

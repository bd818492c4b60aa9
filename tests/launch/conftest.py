"""A run of an untrained model, which can write nonetheless."""

import pytest


@pytest.fixture
def make_run(tmp_path, tiny_config, tiny_model, dataset_folder, text_folder):
    """``make_run("section.field=value", ...)`` -> the folder of a run with checkpoints 3 and 5."""
    from deepcoro.models.text_encoder import load_tokenizer
    from deepcoro.training.checkpoint import save_checkpoint

    def make(*assignments):
        config = tiny_config(f"data.path={dataset_folder}", *assignments)
        load_tokenizer(str(text_folder)).save_pretrained(tmp_path / "run" / "tokenizer")
        for step in (3, 5):
            save_checkpoint(tmp_path / "run", step, tiny_model(config), {"step": step}, config, "made-for-tests")
        return tmp_path / "run"

    return make

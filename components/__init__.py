"""KFP components, one per folder: parse inputs, one call of the library, write outputs."""

import os

if os.environ.get("_KFP_RUNTIME") != "true":  # in a running task kfp has no decorator, and none is needed
    from calib_components.calibrate.component import calibrate
    from calib_components.cft_finetune.component import cft_finetune
    from calib_components.convert_predictions.component import convert_predictions
    from calib_components.data_prep.component import data_prep
    from calib_components.dpo_align.component import dpo_align
    from calib_components.em_ece_finetune.component import em_ece_finetune
    from calib_components.evaluate.component import evaluate
    from calib_components.fresh_data.component import fresh_data
    from calib_components.measure.component import measure
    from calib_components.merge_predictions.component import merge_predictions
    from calib_components.promote.component import promote
    from calib_components.publish_champion.component import publish_champion
    from calib_components.register_model.component import register_model
    from calib_components.score_shard.component import score_shard
    from calib_components.shard_questions.component import shard_questions
    from calib_components.temperature_scaling.component import temperature_scaling

__all__ = [
    "calibrate",
    "cft_finetune",
    "convert_predictions",
    "data_prep",
    "dpo_align",
    "em_ece_finetune",
    "evaluate",
    "fresh_data",
    "measure",
    "merge_predictions",
    "promote",
    "publish_champion",
    "register_model",
    "score_shard",
    "shard_questions",
    "temperature_scaling",
]

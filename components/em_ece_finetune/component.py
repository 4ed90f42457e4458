"""Component `em_ece_finetune`: regularized fine-tuning, for the non-calibratable regime."""

from calib_components.cft_finetune.component import cft_finetune
from calib_components.variants import variant

em_ece_finetune = variant(
    cft_finetune,
    "em_ece_finetune",
    {
        "def cft_finetune(": "def em_ece_finetune(",
        "by fine-tuning on the answers alone (CFT)": "by fine-tuning with the EM-ECE regularizer (RCFT)",
        "in the calibratable regime": "in the non-calibratable regime",
        "`cft`": "`rcft`",
        '"cft"': '"rcft"',
    },
)

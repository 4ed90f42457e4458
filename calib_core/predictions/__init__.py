"""Tables of option logits, whoever made them. numpy and pyarrow; never imports torch."""

from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.predictions.protocols import check_same_protocol
from calib_core.predictions.table import Predictions, concatenate

__all__ = ["Predictions", "check_same_protocol", "concatenate", "read_predictions", "write_predictions"]

"""Tables of option logits, whoever made them. numpy and pyarrow; never imports torch."""

from calib_core.predictions.table import (
    Predictions,
    check_same_protocol,
    concatenate,
    read_predictions,
    write_predictions,
)

__all__ = ["Predictions", "check_same_protocol", "concatenate", "read_predictions", "write_predictions"]

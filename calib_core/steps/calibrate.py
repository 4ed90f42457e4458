"""Calibrate: the pipeline's decision in one process, for backends on which branches can't be merged."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, cast

from calib_core.runtime.progress import say
from calib_core.settings.parameters import ConfigType, config_from, parameter
from calib_core.steps.evaluate import EvaluateConfig, Evaluating, evaluate
from calib_core.steps.finetune import cft, rcft
from calib_core.steps.promote import PromoteConfig, promote
from calib_core.steps.summary_record import SummaryRecord
from calib_core.steps.temperature import give_temperature
from calib_core.storage.files import check_output_folder
from calib_core.training.config import FinetuneConfig, check_processes


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(FinetuneConfig, Evaluating, PromoteConfig):
    """Parameters of evaluation, fine-tuning and gate together; those that share a name share a value."""

    GROUP = "branch"

    mode: Literal["auto", "temperature", "cft", "rcft"] = parameter(
        "auto", "`auto` (what was measured chooses the branch), `temperature`, `cft` or `rcft`."
    )

    def part(self, config_class: type[ConfigType]) -> ConfigType:
        """The parameters of one of the steps."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return config_from(config_class, {**own, "require_regime": True})


def calibrate(
    config: CalibrateConfig,
    *,
    model: str,
    data: Path,
    out: Path,
    adapter: Path,
    model_uri: str = "",
    adapter_uri: str = "",
    report: str = "report.html",
) -> SummaryRecord:
    """Measure a model, repair it by the branch that this chooses, measure again and gate the result.

    Args:
        config: parameters of all steps.
        model: model folder, adapter folder or hub id.
        data: data folder of `prepare`.
        out: folder for `summary.json`, `report.html` and, under `before` and `after`, the evaluations.
        adapter: folder for the repaired model: an adapter, or the temperature of a model that has none; not
            made where nothing is done.
        model_uri: name of `model` in the summary; `model` itself if left out.
        adapter_uri: name of `adapter` in the summary; `adapter` itself if left out.
        report: path or URI under which the report will be found, for the summary.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        CalibError: as the steps say.
    """
    check_processes(config, config.processes)
    check_output_folder(adapter, "calibration.json", inputs=(model, data))
    model_uri, adapter_uri = model_uri or model, adapter_uri or str(adapter)
    measuring, training = config.part(EvaluateConfig), config.part(FinetuneConfig)
    before, after = out / "before", out / "after"
    first = evaluate(measuring, model, data, before)
    found, form = first["regime"], cast(Literal["plain", "chat"], first["prompt_form"])
    # What is decided once holds for the run.
    measuring, training = replace(measuring, prompt_form=form), replace(training, prompt_form=form)
    branch = found["branch"] if config.mode == "auto" else config.mode
    say(f"regime: {found['regime']}; branch: {branch}")
    if branch == "temperature":
        give_temperature(model, before, adapter, after)
    if branch == "cft":
        cft(training, model, data, adapter)
        advice = evaluate(measuring, str(adapter), data, after)["regime"]["branch"]
        if config.mode == "auto" and advice == "rcft":
            say("CFT left the calibratable regime: RCFT starts from the input model")
            branch = "rcft"
    if branch == "rcft":
        rcft(training, model, data, adapter)
        evaluate(measuring, str(adapter), data, after)
    return promote(
        config.part(PromoteConfig),
        before=before,
        after=after,
        model_before=model_uri,
        model_after=model_uri if branch == "none" else adapter_uri,
        branch=branch,
        out=out,
        report=report,
        places={model_uri: model, adapter_uri: adapter},
    )

"""Pipelines of other people's shape, run by kfp.local: TRL, lm-eval's samples, Vertex's batch prediction."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from kfp import compiler, local
from kfp.components import load_component_from_file
from synthetic import make_world, tempered

from calib_core.data.questions import write_questions
from calib_core.metrics.figures import conf_ece
from calib_core.predictions.files import read_predictions
from calib_pipelines.examples.lm_eval_samples import lm_eval_samples
from calib_pipelines.examples.trl_training import trl_training
from calib_pipelines.examples.vertex_batch_prediction import vertex_batch_prediction

N = 420  # what the regime test asks for at its default target, and some more


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a pipeline's compiled form here, a process per task, and returns its outputs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_compiled(pipeline, **parameters):
        package = tmp_path / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(package))
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(tmp_path / "run"),
            workspace_root=str(tmp_path / "workspace"),
        )
        return load_component_from_file(str(package))(**parameters).outputs

    return run_compiled


def answers(seed: int) -> tuple[list[list[float]], list[int]]:
    """Log-probabilities of an overconfident model, and the answers."""
    world = make_world(N, seed)
    table = world.predictions(tempered(world.q, 0.4))
    return table.log_probs().tolist(), table.labels.tolist()


@pytest.mark.slow
def test_lm_eval_samples_are_measured(run, tmp_path):
    logprobs, labels = answers(1)
    with (tmp_path / "samples_facts_2026-11-24T10-00-00.000001.jsonl").open("w") as stream:
        for number, (row, label) in enumerate(zip(logprobs, labels, strict=True)):
            calls = {
                f"gen_args_{i}": {"arg_0": "Q\nAnswer:", "arg_1": f" {'ABCDEFGH'[i]}"}
                for i in range(len(row))
            }
            sample = {
                "doc_id": number,
                "doc": {},
                "target": str(label),
                "arguments": calls,
                "resps": [[[str(value), "False"]] for value in row],
                "filtered_resps": [[str(value), "False"] for value in row],
                "filter": "none",
                "metrics": ["acc"],
                "acc": float(int(np.argmax(row)) == label),
            }
            stream.write(json.dumps(sample) + "\n")
    outputs = run(lm_eval_samples, samples=stream.name)
    confidence = np.exp(logprobs).max(axis=1)
    correct = (np.argmax(logprobs, axis=1) == labels).astype(float)
    assert outputs["conf_ece"] == pytest.approx(conf_ece(confidence, correct), abs=1e-6)
    assert outputs["conf_ece"] > 0.05
    assert len(read_predictions(outputs["predictions"].path)) == N
    assert "<html" in Path(outputs["report"].path).read_text()


@pytest.mark.slow
def test_vertex_batch_predictions_are_measured_without_a_model(run, tmp_path):
    for part, seed in (("heldout", 1), ("fit", 2)):
        folder = tmp_path / part
        folder.mkdir()
        rows = list(enumerate(zip(*answers(seed), strict=True)))
        for file, some in enumerate((rows[: N // 2], rows[N // 2 :])):
            with (folder / f"prediction.results-0000{file}-of-00002").open("w") as stream:
                for number, (row, label) in some:
                    instance = {"id": f"{part}-{number}", "prompt": "Q\nAnswer:", "answer": label}
                    line = {"instance": instance, "prediction": {"logprobs": row}}
                    stream.write(json.dumps(line) + "\n")
    outputs = run(vertex_batch_prediction, heldout=str(tmp_path / "heldout"), fit=str(tmp_path / "fit"))
    assert outputs["regime"] == "calibratable"
    assert outputs["conf_ece"] > 0.05
    assert 'id="bounds"' in Path(outputs["report"].path).read_text()


@pytest.mark.slow
def test_trl_training_is_evaluated_and_gated(run, tmp_path):
    import tiny
    import trained

    write_questions(trained.world(720, seed=0), tmp_path / "questions.parquet")
    start = tiny.save_tiny_model(tmp_path / "start", initializer_range=0.05)
    outputs = run(
        trl_training,
        model=str(start),
        questions=str(tmp_path / "questions.parquet"),
        max_steps=4,
        target_ece=0.17,  # 216 questions can't decide at a lower one
        dtype="float32",
    )
    adapters = list((tmp_path / "run").glob("*/train-with-trl/adapter/adapter_model.safetensors"))
    assert len(adapters) == 1
    assert outputs["winner"] == (os.fspath(adapters[0].parent) if outputs["promoted"] else str(start))
    summary = next((tmp_path / "run").glob("*/promote/summary/summary.json"))
    figures = json.loads(summary.read_text())
    assert figures["before"]["conf_ece"] != figures["after"]["conf_ece"]
    assert "<html" in Path(outputs["report"].path).read_text()

"""Sharded scoring: the very bits of unsharded scoring, shards that fail alone, merges that refuse gaps."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from kfp import local
from kfp.components import load_component_from_file

from calib_core.data.questions import read_questions, write_questions
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.models.loading import load_model
from calib_core.predictions.files import read_predictions
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import encode_questions, score_encoded
from calib_core.steps.shards import (
    ScoreConfig,
    ShardConfig,
    merge_predictions,
    score_shard,
    shard_questions,
)

BATCH_TOKENS = 512


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """File of questions with 3, 4 and 5 options."""
    path = tmp_path_factory.mktemp("questions") / "questions.parquet"
    write_questions(tiny.make_questions(60, options=(3, 4, 5)), path)
    return path


def cut(questions: Path, out: Path, **parameters: object) -> Path:
    shard_questions(ShardConfig(questions=str(questions), **parameters), out)
    return out


def assert_same_bits(a, b):
    assert a.ids == b.ids
    assert a.logits.tobytes() == b.logits.tobytes()
    assert a.letter_mass.tobytes() == b.letter_mass.tobytes()
    assert (a.labels == b.labels).all()
    assert (a.n_options == b.n_options).all()
    assert a.subjects == b.subjects
    assert a.protocol == b.protocol


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral-sliding"])
@pytest.mark.parametrize("shots", [0, 3])
def test_parts_hold_every_question_once_with_the_bits_of_the_whole(tiny_model, family, dtype, shots):
    loaded = load_model(tiny_model(family), dtype=dtype)
    everything = tiny.make_questions(45, options=(3, 4, 5))
    form = PromptForm(shots=tuple(everything[:shots]))
    encoded = encode_questions(
        everything[shots:], PromptEncoder(loaded.tokenizer, form), context_tokens=loaded.context_tokens
    )
    whole = score_encoded(loaded, encoded, batch_tokens=BATCH_TOKENS)
    parts = [score_encoded(loaded, encoded, batch_tokens=BATCH_TOKENS, part=(i, 3)) for i in range(3)]
    assert all(0 < len(part) < len(whole) for part in parts)
    assert sorted(name for part in parts for name in part.ids) == sorted(whole.ids)
    for part in parts:
        assert_same_bits(part, whole.subset([whole.ids.index(name) for name in part.ids]))


@pytest.mark.parametrize("shots", [0, 4])
def test_merged_shards_are_the_unsharded_table(tiny_llama, questions, tmp_path, shots):
    data = cut(questions, tmp_path / "data", shots=shots, questions_per_shard=20)
    config = ScoreConfig(dtype="float32", batch_tokens=BATCH_TOKENS)
    whole = tmp_path / "whole.parquet"
    score_shard(config, str(tiny_llama), data, whole)
    parts = [tmp_path / f"{i}.parquet" for i in range(3)]
    for shard, path in enumerate(parts):
        score_shard(config, str(tiny_llama), data, path, shard=shard)
    merge_predictions(data, parts[::-1], tmp_path / "merged.parquet")
    merged = read_predictions(tmp_path / "merged.parquet")
    assert_same_bits(merged, read_predictions(whole))
    assert merged.ids == tuple(question.id for question in read_questions(questions)[0][shots:])
    assert merged.protocol["shots"] == shots


def test_more_shards_than_batches_leave_some_empty(tiny_llama, questions, tmp_path):
    data = cut(questions, tmp_path / "data", questions_per_shard=6)
    config = ScoreConfig(dtype="float32", batch_tokens=100_000)
    counts = [
        score_shard(config, str(tiny_llama), data, tmp_path / f"{i}.parquet", shard=i)["n_questions"]
        for i in range(10)
    ]
    assert sum(counts) == 60
    assert 0 in counts
    merge_predictions(data, [tmp_path / f"{i}.parquet" for i in range(10)], tmp_path / "merged.parquet")
    assert len(read_predictions(tmp_path / "merged.parquet")) == 60


def test_a_shard_that_is_scored_again_gives_the_same_file(tiny_llama, questions, tmp_path):
    data = cut(questions, tmp_path / "data", questions_per_shard=20)
    config = ScoreConfig(dtype="float32", batch_tokens=BATCH_TOKENS)
    score_shard(config, str(tiny_llama), data, tmp_path / "part.parquet", shard=1)
    first = (tmp_path / "part.parquet").read_bytes()
    score_shard(config, str(tiny_llama), data, tmp_path / "part.parquet", shard=1)
    assert (tmp_path / "part.parquet").read_bytes() == first


@pytest.fixture(scope="module")
def scored(tiny_llama, questions, tmp_path_factory):
    """A cut set with its three shards scored."""
    folder = tmp_path_factory.mktemp("scored")
    data = cut(questions, folder / "data", questions_per_shard=20)
    for shard in range(3):
        config = ScoreConfig(dtype="float32", batch_tokens=BATCH_TOKENS)
        score_shard(config, str(tiny_llama), data, folder / f"{shard}.parquet", shard=shard)
    return folder


def test_merge_refuses_a_missing_shard(scored, tmp_path):
    with pytest.raises(DataFormatError, match=r"missing \('q\d+'.*each of the 3 shards once"):
        merge_predictions(
            scored / "data", [scored / "0.parquet", scored / "2.parquet"], tmp_path / "m.parquet"
        )
    assert not (tmp_path / "m.parquet").exists()


def test_merge_refuses_a_shard_given_twice(scored, tmp_path):
    shards = [scored / f"{i}.parquet" for i in (0, 1, 2, 1)]
    with pytest.raises(DataFormatError, match="there more than once"):
        merge_predictions(scored / "data", shards, tmp_path / "m.parquet")


def test_merge_refuses_shards_of_another_set(scored, tmp_path):
    others = [tiny.make_questions(30, seed=4)[i] for i in range(20)]
    write_questions(others, tmp_path / "others.parquet")
    data = cut(tmp_path / "others.parquet", tmp_path / "data", questions_per_shard=20)
    with pytest.raises(DataFormatError, match="40 not of this set"):
        merge_predictions(data, [scored / f"{i}.parquet" for i in range(3)], tmp_path / "m.parquet")


def test_merge_refuses_shards_made_in_different_ways(scored, tiny_llama, tmp_path):
    config = ScoreConfig(dtype="bfloat16", batch_tokens=BATCH_TOKENS)
    score_shard(config, str(tiny_llama), scored / "data", tmp_path / "1.parquet", shard=1)
    shards = [scored / "0.parquet", tmp_path / "1.parquet", scored / "2.parquet"]
    with pytest.raises(DataFormatError, match=r"1\.parquet: made in another way than .*\(dtype differ\)"):
        merge_predictions(scored / "data", shards, tmp_path / "m.parquet")


def test_unknown_shards_and_folders_are_refused(scored, tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match=r"shard is 3; .* has the shards 0 to 2"):
        score_shard(ScoreConfig(), str(tiny_llama), scored / "data", tmp_path / "p.parquet", shard=3)
    with pytest.raises(
        DataFormatError, match=r"shards\.json: no such file; make the folder with `calib shard`"
    ):
        merge_predictions(tmp_path, [scored / "0.parquet"], tmp_path / "m.parquet")


def test_worked_examples_must_leave_questions(questions, tmp_path):
    with pytest.raises(NotEnoughDataError, match="60 worked examples leave nothing of its 60 questions"):
        cut(questions, tmp_path / "data", shots=60)
    with pytest.raises(ConfigError, match="`questions_per_shard` is 0"):
        ShardConfig(questions="q.jsonl", questions_per_shard=0)


# Found first on the path by the tasks' processes: shard 1 fails the first time that it is tried.
FAILING_ONCE = """
import os
from pathlib import Path

import calib_core.steps.shards as shards

real = shards.score_shard

def score_shard(config, model, data, out, *, shard):
    with Path(os.environ["ATTEMPTS"]).open("a") as stream:
        stream.write(f"{shard}\\n")
    if shard == 1 and Path(os.environ["ATTEMPTS"]).read_text().splitlines().count("1") == 1:
        raise RuntimeError("the machine went away")
    return real(config, model, data, out, shard=shard)

shards.score_shard = score_shard
"""


@pytest.mark.slow
def test_pipeline_tries_a_failed_shard_again_alone(tiny_llama, questions, tmp_path, monkeypatch):
    package = Path(__file__).parents[1] / "pipelines" / "score-large.yaml"
    spec = yaml.safe_load(package.read_text())
    shard = spec["components"]["comp-for-loop-1"]["dag"]["tasks"]["score-shard"]
    shard["retryPolicy"] = {"maxRetryCount": 2, "backoffDuration": "0s"}  # as a cluster's package has it
    (tmp_path / "score-large.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(textwrap.dedent(FAILING_ONCE))
    path = os.pathsep.join(filter(None, [str(tmp_path / "path"), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("ATTEMPTS", str(tmp_path / "attempts"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the same bits as in this process
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "run"),
        workspace_root=str(tmp_path / "workspace"),
    )
    run = load_component_from_file(str(tmp_path / "score-large.yaml"))(
        model=str(tiny_llama),
        questions=str(questions),
        shots=2,
        questions_per_shard=20,
        dtype="float32",
        batch_tokens=BATCH_TOKENS,
    )
    attempts = (tmp_path / "attempts").read_text().split()
    assert sorted(attempts) == ["0", "1", "1", "2"]
    data = cut(questions, tmp_path / "data", shots=2)
    whole = tmp_path / "whole.parquet"
    config = ScoreConfig(dtype="float32", batch_tokens=BATCH_TOKENS)
    score_shard(config, str(tiny_llama), data, whole)
    merged = read_predictions(run.outputs["predictions"].path)
    assert_same_bits(merged, read_predictions(whole))
    assert np.isfinite(merged.confidence()).all()
    assert "<html" in Path(run.outputs["report"].path).read_text()

"""scripts/predict.py: input files, predictions and rejected rows, from Python and from the command line."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf
from polars.selectors import starts_with
from polars.testing import assert_frame_equal

from common.errors import InputError
from inference.artifact import Artifact
from inference.writers import writing
from scripts.predict import predict
from tests.conftest import ROOT, run_script

NUMBERS = ["age", "education-num", "capital-gain", "capital-loss", "hours-per-week"]


def predictions_of(artifact: Artifact, source: Path, batch: int = 65_536) -> pl.DataFrame:
    output = source.with_suffix(".predictions.parquet")
    predict(artifact, str(source), str(output), None, batch)
    return pl.read_parquet(output)


def test_raw_and_cleaned_files_get_the_same_predictions(
    adult: Artifact, rows: pl.DataFrame, data_dir: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw.csv.gz"
    raw.write_bytes((data_dir / "adult" / "adult.csv.gz").read_bytes())
    cleaned = tmp_path / "cleaned.csv"
    rows.with_columns(pl.all().str.strip_chars().replace("?", "")).write_csv(cleaned)
    ours = predictions_of(adult, raw)
    assert ours.columns == ["line", "label", "probability_<=50K", "probability_>50K", "flags"]
    assert ours["line"].to_list() == list(range(2, 48_844))
    assert predictions_of(adult, cleaned).equals(ours)


def test_all_formats_get_the_same_predictions(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    some = rows.head(2000)
    typed = some.with_columns(pl.col(pl.String).str.strip_chars()).with_columns(pl.col(NUMBERS).cast(pl.Int64))
    some.write_csv(tmp_path / "rows.csv")
    some.write_csv(tmp_path / "rows.tsv", separator="\t")
    typed.write_parquet(tmp_path / "rows.parquet")
    typed.write_ndjson(tmp_path / "rows.jsonl")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    expected = predictions_of(adult, tmp_path / "rows.csv").drop("line")
    assert len(expected) == 2000
    for name in ("rows.tsv", "rows.parquet", "rows.jsonl", "packed.csv.gz"):
        assert predictions_of(adult, tmp_path / name).drop("line").equals(expected), name


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_predictions_do_not_depend_on_the_chunk_size(
    adult: Artifact, rows: pl.DataFrame, tmp_path: Path, batch: int
) -> None:
    source = tmp_path / "rows.csv"
    odd = rows.head(100).with_columns(age=pl.when(pl.int_range(100) % 9 == 8).then(pl.lit("x")).otherwise("age"))
    odd.write_csv(source)
    whole, cut = predictions_of(adult, source), predictions_of(adult, source, batch)
    probability = starts_with("probability")
    assert cut.drop(probability).equals(whole.drop(probability))
    for name in whole.select(probability).columns:
        assert cut[name].to_list() == pytest.approx(whole[name].to_list(), abs=1e-6)
    assert pl.read_parquet(tmp_path / "rows.predictions.rejects.parquet")["line"].to_list() == list(range(10, 101, 9))


def test_all_output_formats_are_equal(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    rows.head(50).write_parquet(source)
    for extension in ("csv", "parquet", "jsonl"):
        predict(adult, str(source), f"{tmp_path}/out.{extension}", None, 20)
    written = pl.read_parquet(tmp_path / "out.parquet")
    assert written.height == 50
    schema = written.schema
    assert pl.read_csv(tmp_path / "out.csv", schema=schema).equals(written)
    assert pl.read_ndjson(tmp_path / "out.jsonl", schema=schema).equals(written)


def test_rejected_rows_are_saved_with_line_rule_and_value(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    source, output = tmp_path / "rows.csv", tmp_path / "out.csv"
    lines = rows.head(6).write_csv().splitlines()
    lines[2] = lines[2].replace(lines[2].split(",")[0], "thirty", 1)
    lines[3] = lines[3].replace(" Private", " Robot")
    lines[5] += ",one more cell"
    source.write_text("\n".join(lines) + "\n")
    summary = predict(adult, str(source), str(output), None, 4)
    assert summary == f"6 rows read, 4 predicted (1 of them flagged), 2 rejected: {tmp_path}/out.rejects.csv"
    assert pl.read_csv(output)["line"].to_list() == [2, 4, 5, 7]
    assert pl.read_csv(output)["flags"].to_list() == ["", 'workclass: unseen level "Robot"', "", ""]
    rejects = pl.read_csv(tmp_path / "out.rejects.csv")
    assert rejects.columns == ["file", "line", "column", "rule", "value"]
    assert rejects["line"].to_list() == [3, 6]
    assert rejects.row(0) == (str(source), 3, "age", "not a number", "thirty")


def test_rejected_rows_of_an_earlier_call_are_deleted(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    source, output = tmp_path / "rows.csv", tmp_path / "out.parquet"
    rows.head(3).with_columns(age=pl.lit("x")).write_csv(source)
    summary = predict(adult, str(source), str(output), None, 10)
    assert summary == f"3 rows read, 0 predicted (0 of them flagged), 3 rejected: {tmp_path}/out.rejects.parquet"
    assert pl.read_parquet(output).is_empty()
    rows.head(3).write_csv(source)
    summary = predict(adult, str(source), str(output), None, 10)
    assert summary == "3 rows read, 3 predicted (0 of them flagged), 0 rejected"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.csv"]


def test_missing_and_unknown_columns_are_reported_once(
    adult: Artifact, rows: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "rows.csv"
    rows.head(10).drop("workclass", "age").with_columns(id=pl.lit("7")).write_csv(source)
    assert predictions_of(adult, source, batch=3)["flags"].to_list() == ["age: missing"] * 10
    assert capsys.readouterr().err == (
        f"warning: {source} lacks columns, treated as missing values: age, workclass\n"
        "note: ignored columns that the model does not use: id\n"
    )


def test_a_table_without_any_known_column(adult: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("Age,Job\n3,x\n")
    with pytest.raises(InputError) as error:
        predict(adult, str(source), f"{tmp_path}/out.csv", None, 10)
    assert str(error.value) == (
        f"{source}: has no column of {adult.path}. Expected {', '.join(adult.columns)}; found Age, Job."
    )
    assert list(tmp_path.iterdir()) == [source]


def test_the_artifact_predicts_the_same_as_the_live_model(
    adult: Artifact, adult_run: Path, data_dir: Path, tmp_path: Path
) -> None:
    from datamodules.readers.read import LINE
    from datamodules.schema import TargetSpec
    from models.training.prediction_head import PredictionHead
    from trainer.config.instantiate import instantiate

    config = OmegaConf.load(adult_run / "config.yaml")
    datamodule = instantiate(config.data)
    datamodule.setup()
    network = instantiate(config.model, spec=datamodule.inputs, outputs=datamodule.target.outputs)
    saved = torch.load(adult_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in saved.items() if name.startswith("network.")}
    )
    batch = datamodule.head("val", datamodule.splits["val"]["rows"])
    answer = PredictionHead(TargetSpec("y", "binary", ("no", "yes")))
    answer.temperature = adult.spec["temperature"]
    with torch.inference_mode():
        live = answer(network.eval()(batch))[:, 1]

    output = tmp_path / "out.parquet"
    predict(adult, str(data_dir / "adult" / "adult.csv.gz"), str(output), None, 65_536)
    validation = (
        datamodule.row_locations("val")
        .select(line=LINE)
        .join(pl.read_parquet(output), on="line", maintain_order="left")
    )
    torch.testing.assert_close(torch.tensor(validation["probability_>50K"].to_numpy()), live, atol=1e-5, rtol=0)


def test_text_without_a_header_and_with_broken_bytes(
    data_dir: Path, tmp_path: Path, run_here: Callable[..., Path]
) -> None:
    """sms_spam has no header, and quotes that are part of the text."""
    run = run_here("data=sms_spam", f"paths.data={data_dir}", "model=linear", "trainer.max_epochs=1", "test=false")
    lines = (data_dir / "sms_spam" / "sms.tsv").read_bytes().splitlines()[:200]
    lines[7] += b" caf\xe9"
    (tmp_path / "sms.tsv").write_bytes(b"\n".join(lines))
    command = ("--artifact", f"{run}/model.pt", "--input", "sms.tsv")
    failed = run_script("scripts/predict.py", *command, "--output", "out.csv", "--names", "label,message", cwd=tmp_path)
    assert (failed.returncode, failed.stderr) == (
        2,
        "sms.tsv, line 8: byte 0xe9 is not UTF-8; convert the file, as with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        "\n",
    )
    options = ("--names", "label,message", "--replace-invalid")
    done = run_script("scripts/predict.py", *command, "--output", "out.parquet", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "",
        "sms.tsv: replaced bytes that are not UTF-8 by U+FFFD: 1\n"
        "200 rows read, 200 predicted (0 of them flagged), 0 rejected\n",
    )
    cells = [line.decode(errors="replace").split("\t") for line in lines]
    texts = pl.DataFrame(cells, ["label", "message"], orient="row")
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["line"].to_list() == list(range(1, 201))
    assert found.drop("line").equals(Artifact.load(run / "model.pt").score(texts).answers.drop("row"))
    measured = run_script("scripts/evaluate.py", *command, *options, "--separator", "\t", cwd=tmp_path)
    assert (measured.returncode, measured.stdout.splitlines()[-3:]) == (
        0,
        ["rows                 200", "rejected             0", "without_target       0"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--names", "a,a"), "data.names: 'a' is given twice; each column needs a unique name"),
        (("--names", "a,b"), "rows.csv, line 1: 1 fields, but data.names gives 2: a, b"),
        (("--separator", "::"), "--separator '::': must be one character. A tab is detected without it."),
    ],
)
def test_options_that_do_not_fit_the_file(
    adult: Artifact, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "rows.csv").write_text("age\n1\n")
    command = ("--artifact", str(adult.path), "--input", "rows.csv", "--output", "out.csv", *arguments)
    done = run_script("scripts/predict.py", *command, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")


def test_a_file_without_valid_rows(adult: Artifact, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("age,sex\n1;Male\n2;Female\n")
    with pytest.raises(InputError) as error:
        predictions_of(adult, source)
    assert str(error.value) == (
        f"{source}, line 2: 1 fields instead of 2, and no row is valid; give the separator with"
        " data.separator, or fix the file"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_standard_input_and_output(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    table = rows.head(40).write_csv()
    done = run_script(
        "scripts/predict.py", "--artifact", str(adult.path), "--input", "-", "--output", "-", "--batch", "15",
        cwd=tmp_path, input=table,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "40 rows read, 40 predicted (0 of them flagged), 0 rejected\n")
    (tmp_path / "rows.csv").write_text(table)
    with writing(f"{tmp_path}/expected.csv") as append:
        append(predictions_of(adult, tmp_path / "rows.csv", batch=15))
    # Only approximately equal: another process may use another number of threads.
    assert_frame_equal(pl.read_csv(StringIO(done.stdout)), pl.read_csv(tmp_path / "expected.csv"))


def test_rejected_rows_without_a_file_are_an_error(adult: Artifact, rows: pl.DataFrame, tmp_path: Path) -> None:
    table = rows.head(3).with_columns(pl.Series("age", ["39", "thirty", "50"])).write_csv()
    command = ("--artifact", str(adult.path), "--input", "-", "--output", "-")
    done = run_script("scripts/predict.py", *command, cwd=tmp_path, input=table)
    assert (done.returncode, done.stderr) == (
        2,
        "3 rows read, 2 predicted (0 of them flagged), 1 rejected and not saved. Give --rejects FILE.\n",
    )
    assert len(done.stdout.splitlines()) == 3
    saved = run_script("scripts/predict.py", *command, "--rejects", "bad.jsonl", cwd=tmp_path, input=table)
    assert (saved.returncode, saved.stdout) == (0, done.stdout)
    assert pl.read_ndjson(tmp_path / "bad.jsonl")["value"].to_list() == ["thirty"]


def test_errors_have_no_traceback(adult: Artifact, tmp_path: Path) -> None:
    done = run_script("scripts/predict.py", "--artifact", "none.pt", "--input", "-", "--output", "-", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "none.pt: no such file. Give the model.pt of a run folder.\n",
    )


@pytest.mark.slow  # tests/trainer/export has the fast test
def test_the_artifact_needs_only_torch(adult: Artifact, tmp_path: Path) -> None:
    program = f"""
import sys, torch
model = torch.jit.load({str(adult.path)!r})
nan = float("nan")
numbers = {{name: torch.tensor([39.0, nan, 1e9]) for name in {NUMBERS[1:]!r}}}
strings = {{"workclass": [" Private", "Robot", "?"], "sex": ["Male", "", "Female"], "unknown": ["a", "b", "c"]}}
answers = model({{**numbers, "other": torch.ones(3)}}, strings, {{}})
assert answers["probabilities"].isfinite().all() and answers["label"].shape == (3,)
packages = ("datamodules", "models", "inference", "common", "trainer", "polars")
ours = [name for name in sys.modules if name.split(".")[0] in packages]
print(ours, answers["probabilities"][:, 1].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    frame = pl.DataFrame(
        {name: [39.0, None, 1e9] for name in NUMBERS[1:]}
        | {"workclass": [" Private", "Robot", "?"], "sex": ["Male", "", "Female"]}
    )
    expected = adult.score(frame).answers["probability_>50K"].to_list()
    modules, _, values = done.stdout.partition(" ")
    assert modules == "[]"
    assert [float(value) for value in values.strip()[1:-1].split(",")] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rejects", "rows.csv"), "must be different files: model.pt, rows.csv, out.csv, rows.csv"),
        (("--output", "rows.csv"), "must be different files: model.pt, rows.csv, rows.csv, rows.rejects.csv"),
        (("--batch", "-1"), "--batch -1: must be at least 1"),
    ],
)
def test_input_files_are_not_overwritten(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    command = ("--artifact", "model.pt", "--input", "rows.csv", "--output", "out.csv", *arguments)
    done = run_script("scripts/predict.py", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith(f"{message}\n")
    assert (tmp_path / "rows.csv").read_text() == "a\n1\n"


def test_the_output_pipe_may_be_closed_early(adult_run: Path, data_dir: Path) -> None:
    command = f"{sys.executable} scripts/predict.py --artifact {adult_run}/model.pt"
    source = data_dir / "adult" / "adult.csv.gz"
    pipe = f"set -o pipefail; {command} --input {source} --output - | head -n 2"
    ended = subprocess.run(["bash", "-c", pipe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("line,label,")
    assert len(ended.stdout.splitlines()) == 2
    assert "Error" not in ended.stderr

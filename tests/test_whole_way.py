"""A raw row from end to end: training, the artifact and scripts/predict.py treat it in the same way."""

import datetime
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from datamodules.readers.read import BAD, FILE, LINE
from datamodules.schema import TargetSpec
from datamodules.tabular import TableDataModule
from inference.artifact import Artifact
from models.training.prediction_head import PredictionHead
from scripts.predict import predict
from trainer import compose, train
from trainer.config.instantiate import instantiate

KINDS = {"amount": "number", "count": "number", "day": "date", "level": "category", "words": "text", "photo": "image"}
LEVELS = ["red", "green", "blue", "12", "Ünïcode", "none at all"]
WORDS = ["good", "bad", "weather", "l'été", "Straße", "日本", "42", "🙂", "Σίσυφος"]
PHOTOS = [
    ("gray.png", "L", (12, 12)), ("wide.png", "RGB", (40, 8)), ("tall.jpg", "RGB", (9, 33)), ("dot.png", "L", (1, 1)),
    ("small.jpg", "L", (5, 7)), ("clear.png", "RGBA", (12, 12)), ("palette.png", "P", (12, 12)),
    ("bits.png", "1", (8, 8)), ("ink.jpg", "CMYK", (12, 12)), ("deep.png", "I;16", (12, 12)),
]  # fmt: skip
USABLE = [name for name, mode, _ in PHOTOS if mode in ("L", "RGB")]
INVALID = ["cut.jpg", "words.png", "none.png", "../rows.csv", "/etc/hostname", "."]
ROWS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small images and train.csv, which has all kinds of columns, most of them with missing cells."""
    folder = tmp_path_factory.mktemp("way")
    generator = np.random.default_rng(0)
    for name, mode, (width, height) in PHOTOS:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if mode == "I;16" else image).convert(mode).save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "tall.jpg").read_bytes()[:-100])
    (folder / "words.png").write_text("not an image")
    draw = random.Random(0)
    rows = []
    for row in range(ROWS):
        day = datetime.date(2020, 1, 1) + datetime.timedelta(days=draw.randrange(1500))
        rows.append(
            {
                "amount": draw.choice(["", f"{draw.gauss(0, 3):.3f}", f" {draw.gauss(0, 3):.1f}", "1,000"]),
                "count": str(draw.randrange(7)),
                "day": draw.choice([f"{day:%d/%m/%Y}", f"{day:%d/%m/%Y} 14:30", str(day), "NA"]),
                "level": draw.choice([*LEVELS, "?", " red"]),
                "words": " ".join(draw.choices(WORDS, k=draw.randrange(6))),
                "photo": draw.choice([*USABLE, ""]),
                "part": ("train", "train", "val", "test")[row % 4],
                "y": draw.choice(["yes", "no"]),
            }
        )
    pl.DataFrame(rows).write_csv(folder / "train.csv")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on train.csv."""
    run = tmp_path_factory.mktemp("way") / "run"
    columns = ",".join(f"{name}:{kind}" for name, kind in KINDS.items())
    config = compose(
        "data=table", f"data.path={folder}/train.csv", "data.target=y", f"data.columns={{{columns}}}",
        "calibrate=false", "data.split.by=column", "data.split.column=part", "data.max_bad_fraction=1",
        "data.image_size=16",
        "data.max_levels=3", "data.hash_buckets=4", "data.char_ngrams=[2,3]", "data.ranges={count:[null,1e30]}",
        "data.replace={level:[[blue,green]],amount:[[1,null]]}", "model=fusion", "model.channels=8",
        "trainer.max_epochs=2", "data.cache=null", "baselines=false", "logger=none", f"hydra.run.dir={run}",
    )  # fmt: skip
    return train(config).folder


@pytest.fixture(scope="module")
def artifact(run: Path) -> Artifact:
    return Artifact.load(run / "model.pt")


@pytest.fixture(scope="module")
def prepare(run: Path) -> Callable[..., TableDataModule]:
    """Prepares the training rows again, together with other files of test rows."""
    config = OmegaConf.load(run / "config.yaml").data

    def prepare_with(*others: Path) -> TableDataModule:
        datamodule: TableDataModule = instantiate(config, path=[config.path, *map(str, others)])
        datamodule.setup()
        return datamodule

    return prepare_with


@pytest.fixture(scope="module")
def network(run: Path, prepare: Callable[..., TableDataModule]) -> nn.Module:
    """The network with the weights of its checkpoint."""
    datamodule = prepare()
    built: nn.Module = instantiate(
        OmegaConf.load(run / "config.yaml").model, spec=datamodule.inputs, outputs=datamodule.target.outputs
    )
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    prefix = "network."
    built.load_state_dict({name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)})
    return built.eval()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MISSING = st.sampled_from([None, "", " ", "?", "NA", " nan", "NULL"])
FLOATS = st.floats(width=64) | st.sampled_from([1e30, 1e31, 5e-324, -0.0, 1.0, 2.5])
WHOLE = st.integers(-9, 9) | st.integers(-(2**63), 2**63 - 1)
ODD_NUMBERS = [
    "1e30",
    str(10**30),
    str(-(10**40)),
    "1e400",
    "-Infinity",
    "1,234.50",
    "1,2",
    "1_000",
    "+.5",
    "7.",
    "0x10",
]
NUMBER_TEXTS = (
    FLOATS.map(repr)
    | WHOLE.map(str)
    | st.sampled_from([*ODD_NUMBERS, "12 km", " 3 ", "1\u00a0", "\u0661"])
    | MISSING
    | TEXT
)
MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1))
MOMENTS_OF_WHOLE_OFFSETS = st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2200, 1, 1))
"""Earlier offsets of Asia/Kolkata have seconds, which a CSV file does not keep."""
FORMATS = ["%d/%m/%Y", "%m/%d/%Y", "%Y-%m-%d", "%Y/%m/%d %H:%M", "%d.%m.%Y %H:%M:%S.%f", "%b %d, %Y %I:%M %p",
           "%Y-%m-%dT%H:%M:%S+02:00", "%d %B %Y", "%Y%m%d", "%y-%m-%d", "%H:%M"]  # fmt: skip
DATE_TEXTS = (
    st.builds(lambda moment, form: moment.strftime(form), MOMENTS, st.sampled_from(FORMATS))
    | st.integers(10**8, 10**13).map(str)
    | st.sampled_from(["30/02/2021", "2021-13-01", "0000-01-01", "9999-12-31", "1e9", str(10**30)])
    | MISSING
    | TEXT
)
LEVEL_TEXTS = st.sampled_from([*LEVELS, " red ", "12.0", "012", "\u00a0blue", "unseen"]) | MISSING | TEXT
WORD_TEXTS = st.lists(st.sampled_from(WORDS) | TEXT, max_size=6).map(" ".join) | MISSING
PHOTO_TEXTS = st.sampled_from([*USABLE, *(name for name, _, _ in PHOTOS), *INVALID, f" {USABLE[0]} "]) | MISSING | TEXT


def optional(cells: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | cells


COLUMNS: dict[str, list[tuple[Any, st.SearchStrategy[Any]]]] = {
    "amount": [
        (pl.String, NUMBER_TEXTS),
        (pl.Float64, optional(FLOATS)),
        (pl.Int64, optional(WHOLE)),
        (pl.Int128, optional(WHOLE | st.sampled_from([10**30, -(10**37)]))),
        (pl.Decimal(20, 3), optional(st.decimals(-(10**9), 10**9, places=3))),
        (pl.Null, st.none()),
    ],
    "count": [
        (pl.String, NUMBER_TEXTS),
        (pl.Float32, optional(st.integers(0, 8))),
        (pl.UInt8, optional(st.integers(0, 255))),
    ],
    "day": [
        (pl.String, DATE_TEXTS),
        (pl.Date, optional(MOMENTS.map(datetime.datetime.date))),
        (pl.Datetime("ms"), optional(MOMENTS)),
        (pl.Datetime("us", "Asia/Kolkata"), optional(MOMENTS_OF_WHOLE_OFFSETS)),
        (pl.Int64, optional(st.integers(10**8, 10**13))),
        (pl.Null, st.none()),
    ],
    "level": [
        (pl.String, LEVEL_TEXTS),
        (pl.Categorical, optional(st.sampled_from(LEVELS))),
        (pl.Enum(LEVELS), optional(st.sampled_from(LEVELS))),
        (pl.Int64, optional(st.integers(10, 14))),
        (pl.Float64, optional(FLOATS | st.just(12.0))),
        (pl.Boolean, optional(st.booleans())),
    ],
    "words": [(pl.String, WORD_TEXTS), (pl.Categorical, optional(st.sampled_from(WORDS)))],
    "photo": [(pl.String, PHOTO_TEXTS), (pl.Enum(USABLE), optional(st.sampled_from(USABLE)))],
}


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    """Raw rows with all kinds of columns, each with one of the types that it may have."""
    rows = draw(st.integers(1, 12))
    table = {}
    for name, types in COLUMNS.items():
        dtype, cells = draw(st.sampled_from(types))
        table[name] = pl.Series(name, draw(st.lists(cells, min_size=rows, max_size=rows)), dtype, strict=True)
    return pl.DataFrame(table)


def predict_encoded(datamodule: TableDataModule, network: nn.Module) -> pl.DataFrame:
    """`line`, `file` and `probability` of the test rows, predicted by the network from the encoded rows."""
    locations = datamodule.row_locations("test")
    batch = datamodule.head("test", len(locations))
    with torch.inference_mode():
        probability = PredictionHead(TargetSpec("y", "binary", ("no", "yes")))(network(batch))[:, 1]
    return locations.select(line=LINE, file=FILE).with_columns(probability=pl.Series(probability.numpy()))


@given(table=tables())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_training_the_artifact_and_predict_treat_any_row_alike(
    table: pl.DataFrame,
    folder: Path,
    artifact: Artifact,
    prepare: Callable[..., TableDataModule],
    network: nn.Module,
) -> None:
    files = {folder / "rows.parquet": pl.DataFrame.write_parquet, folder / "rows.csv": pl.DataFrame.write_csv}
    for file, write in files.items():
        write(table.with_columns(part=pl.lit("test"), y=pl.lit("yes")), file)
    scored = artifact.score(table, folder)
    datamodule = prepare(*files)
    encoded = predict_encoded(datamodule, network)
    assert datamodule.quarantine is not None
    for file in files:
        live = encoded.filter(pl.col("file") == str(file))
        summary = predict(artifact, str(file), f"{folder}/predictions.parquet", None, 5)
        predictions = pl.read_parquet(folder / "predictions.parquet")
        assert predictions["line"].to_list() == live["line"].to_list()
        for frame in (predictions, scored.answers):
            assert frame["probability_yes"].to_list() == pytest.approx(live["probability"].to_list(), abs=1e-5)
        assert predictions["flags"].to_list() == scored.answers["flags"].to_list()
        rejects = pl.DataFrame(schema=BAD)
        if len(predictions) < len(table):
            rejects = pl.read_parquet(folder / "predictions.rejects.parquet")
        columns = ["line", "column", "rule", "value"]
        rejected, quarantined = (
            frame.filter(pl.col("file") == str(file)).select(columns).sort(columns)
            for frame in (rejects, datamodule.quarantine)
        )
        assert rejected.equals(quarantined)
        assert summary.startswith(f"{len(table)} rows read, {len(predictions)} predicted")

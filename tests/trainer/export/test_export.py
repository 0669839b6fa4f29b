"""Export: the content of the artifact, its agreement with the live model, and atomic writing."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from omegaconf import OmegaConf

from models.architectures.mlp import MLP
from trainer.export.artifact_file import ExportError, write_artifact

RunHere = Callable[..., Path]
EXTRA = ("spec.json", "reference.json", "selftest.json", "card.md")
QUICK = ("logger=none", "baselines=false", "trainer.threads=1", "callbacks.progress=null")


def load(path: Path) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    extra: dict[str, Any] = dict.fromkeys(EXTRA)
    module = torch.jit.load(str(path), _extra_files=extra)
    return module, {name: json.loads(text) if name.endswith("json") else text.decode() for name, text in extra.items()}


@pytest.fixture(scope="session")
def adult_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table with numbers, levels, missing cells and blanks."""
    generator = torch.Generator().manual_seed(0)
    age = torch.rand(600, generator=generator) * 70 + 17
    job = torch.randint(0, 4, (600,), generator=generator)
    noise = torch.rand(600, generator=generator)
    table = pl.DataFrame(
        {
            "age": [None if code == 3 else value for value, code in zip(age.tolist(), job.tolist(), strict=True)],
            "luck": noise.tolist(),
            "job": [[" clerk", "smith ", "?", "nurse"][code] for code in job.tolist()],
            "rich": ["yes" if value > 45 + 20 * luck else "no" for value, luck in zip(age, noise, strict=True)],
        }
    )
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    table.write_csv(path)
    return path


def test_the_description_in_the_extra_files(run_here: RunHere, adult_like: Path) -> None:
    folder = run_here(*QUICK, "data=table", f"data.path={adult_like}", "data.target=rich", "trainer.max_epochs=3")
    module, extra = load(folder / "model.pt")
    spec = extra["spec.json"]
    assert spec["format"] == 1
    assert [(column["name"], column["kind"], column["missing"]) for column in spec["columns"]] == [
        ("age", "number", True),
        ("luck", "number", False),
        ("job", "category", True),
    ]
    assert sorted(spec["columns"][2]["levels"]) == ["clerk", "nurse", "smith"]
    assert spec["target"]["classes"] == ["no", "yes"]
    assert spec["metrics"]["test/accuracy"] == json.loads((folder / "metrics.json").read_text())["test/accuracy"]
    assert sum(extra["reference.json"]["predictions"]["counts"]) == 96
    assert "| job | category | 3 levels, sometimes missing |" in extra["card.md"]

    test = extra["selftest.json"]
    numbers = {
        name: torch.tensor([float("nan") if x is None else x for x in column], dtype=torch.float64)
        for name, column in test["numbers"].items()
    }
    answers = module(numbers, test["strings"], {})
    assert len(test["strings"]["job"]) == 64
    torch.testing.assert_close(answers["probabilities"], torch.tensor(test["answers"]["probabilities"]))
    assert answers["label"].tolist() == test["answers"]["label"]


def test_no_training_row_is_in_the_artifact(run_here: RunHere, tmp_path: Path) -> None:
    secret = [f"secret{row}" for row in range(300)]
    table = pl.DataFrame({"name": secret, "x": range(300), "level": ["a", "b", "c"] * 100, "y": ["p", "q"] * 150})
    table.write_csv(tmp_path / "rows.csv")
    folder = run_here(*QUICK, "data=table", f"data.path={tmp_path}/rows.csv", "data.target=y", "trainer.max_epochs=1")
    content = (folder / "model.pt").read_bytes()
    assert b"secret" not in content
    assert len(content) < 1_000_000


def test_the_artifact_needs_only_torch(run_here: RunHere, adult_like: Path, tmp_path: Path) -> None:
    folder = run_here(*QUICK, "data=table", f"data.path={adult_like}", "data.target=rich", "trainer.max_epochs=1")
    program = f"""
import sys, torch
packages = ("datamodules", "models", "trainer", "inference", "common")
assert not any(name.split(".")[0] in packages for name in sys.modules)
model = torch.jit.load({str(folder / "model.pt")!r})
nan = float("nan")
numbers = {{"age": torch.tensor([20.0, 80.0]), "luck": torch.tensor([0.5, 0.5])}}
whole = model(numbers, {{"job": ["smith", "clerk"]}}, {{}})
odd = {{"job": [" smith", "astronaut"], "more": ["", ""]}}
odd = model({{"age": torch.tensor([nan, 1e300]), "extra": torch.ones(2)}}, odd, {{}})
absent = model({{"age": torch.tensor([20, 80])}}, {{}}, {{}})
for answers in (whole, odd, absent):
    assert answers["probabilities"].shape == (2, 2) and answers["probabilities"].isfinite().all()
    torch.testing.assert_close(answers["probabilities"].sum(1), torch.ones(2))
print(whole["label"].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1]"


class Wobbly(MLP):
    """Computes something else when it is scripted."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        output: torch.Tensor = self.layers(self.inputs(batch))
        if torch.jit.is_scripting():
            output = output * 1.1
        return output


def test_a_difference_between_artifact_and_live_model_is_an_error(run_here: RunHere, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        run_here(
            *QUICK, "data=iris", "trainer.max_epochs=1", f"model._target_={__name__}.Wobbly", "allowed_targets=[tests]"
        )
    assert re.sub(r"by \S+ \(", "by N (", str(error.value)) == (
        "The artifact was not written: on validation rows it differs from the live model by N (at most 1e-05 is"
        " allowed). A layer of the network computes something else when scripted."
    )
    assert not list(tmp_path.rglob("*model.pt*"))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(run_here: RunHere, tmp_path: Path) -> None:
    run = run_here(*QUICK, "data=iris", "trainer.max_epochs=1")
    path = run / "model.pt"
    before = path.read_bytes()
    pipeline, extra = torch.jit.load(str(path)), {"spec.json": "", "reference.json": ""}
    torch.jit.load(str(path), _extra_files=extra)
    facts, reference = json.loads(extra["spec.json"]), json.loads(extra["reference.json"])
    config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a real error of the operating system
    try:
        with pytest.raises(ExportError) as error:
            write_artifact(path, pipeline, facts, reference, facts["metrics"], config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.sub(r"\(.* MB\)", "(N MB)", str(error.value)) == (
        f"{path}: the artifact (N MB) was not written: File too large. No partial file is left. Free disk space, then"
        f" continue with: python train.py resume={run}"
    )
    assert path.read_bytes() == before
    assert not list(run.rglob("*.unfinished"))

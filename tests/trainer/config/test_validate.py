"""The check of the settings before a run: every kind of mistake, with its whole message."""

import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.conftest import ROOT, run_script
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.config.settings import leaves

LOGGED = (
    "train/loss, val/loss, val/accuracy, val/auroc, val/average_precision, val/balanced_accuracy,"
    " val/calibrated_log_loss, val/calibration_error, val/f1, val/log_loss, val/mae, val/mape, val/r2,"
    " val/rmse or val/f1/CLASS."
)
ALLOWED = "Allowed are datamodules, models, trainer, torch, torchmetrics, torchvision, pytorch_lightning;"

MODELS = ", ".join(sorted(file.stem for file in (ROOT / "conf" / "model").iterdir()))


def rejected(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(list(arguments))
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("model=mpl", f"model: there is no choice mpl. Did you mean mlp? The choices are {MODELS}."),
        ("model.hiden=3", "model.hiden: unknown key. Did you mean hidden?"),
        ("+model.hiden=3", "model.hiden: unknown key. Did you mean hidden?"),
        ("++trainer.max_epoch=3", "trainer.max_epoch: unknown key. Did you mean max_epochs?"),
        ("sead=3", "sead: unknown key. Did you mean seed?"),
        ("optimiser.lr=1", "optimiser: unknown key. Did you mean optimizer?"),
        ("data.colums={a: drop}", "data.colums: unknown key. Did you mean columns?"),
        ("paths.dada=x", "paths.dada: unknown key. Did you mean data?"),
        ("paths.q=x", "paths.q: unknown key. Known are cache, data, output."),
        ("hydra.run.dri=x", "hydra.run.dri: unknown key. Did you mean dir?"),
        (
            "callbacks.early_stopping.patiense=3",
            "callbacks.early_stopping.patiense: unknown key. Did you mean patience?",
        ),
        ("logger.tensorboard.vresion=a", "logger.tensorboard.vresion: unknown key. Did you mean version?"),
        ("seed=x", 'seed: must be an integer; it is "x".'),
        ("seed=1.5", "seed: must be an integer; it is 1.5."),
        ("seed=true", "seed: must be an integer; it is true."),
        ("test=1", "test: must be true or false; it is 1."),
        ("l1=null", "l1: must be a number; it is null."),
        ("mode=mni", 'mode: must be "min" or "max"; it is "mni". Did you mean min?'),
        ("model.hidden=[8,a]", 'model.hidden.1: must be an integer; it is "a".'),
        ("model.hidden=8", "model.hidden: must be a list (each an integer); it is 8."),
        ("model.init=xe", 'model.init: must be "he", "xavier", "orthogonal" or "data"; it is "xe".'),
        ("trainer.threads=many", 'trainer.threads: must be an integer or "auto"; it is "many".'),
        ("trainer.max_epochs=ten", 'trainer.max_epochs: must be an integer or null; it is "ten".'),
        (
            "data.columns={zip: categry}",
            'data.columns.zip: must be "number", "category", "text", "date", "identifier", "constant", "image" or'
            ' "drop"; it is "categry". Did you mean category?',
        ),
        ("data.ranges={a: [0]}", "data.ranges.a: must be a list of 2 (each a number or null); it is [0]."),
        ("loss.class_weights=3", 'loss.class_weights: must be "balanced", a list (each a number) or null; it is 3.'),
        ("callbacks.checkpoint=3", "callbacks.checkpoint: must be a node with _target_ or null; it is 3."),
        ("trainer.logger=false", "trainer.logger: is filled in by the run: leave it out."),
        ("model.outputs=3", "model.outputs: is filled in by the run: leave it out."),
        ("optimizer._partial_=false", "optimizer._partial_: must be true: the run itself calls it."),
        (
            "model._target_=models.mpl.MLP",
            "model._target_: cannot import models.mpl: ModuleNotFoundError: No module named 'models.mpl'",
        ),
        ("model._target_=MLP", 'model._target_: must be a module and a name in it; it is "MLP".'),
        ("+hydra.sweeper.params.sead=1", "hydra.sweeper.params.sead: Unexpected type for root: NoneType."),
        (
            "optimizer._target_=torch.optim.Adm",
            "optimizer._target_: torch.optim has no class or function Adm. Did you mean Adam?",
        ),
        (
            "model._target_=os.system",
            f"model._target_: os.system is outside the allowed packages. {ALLOWED} allowed_targets=[os] adds to them.",
        ),
        (
            "trainer.profiler._target_=torchx.P",
            "trainer.profiler._target_: torchx.P is outside the allowed packages. Did you mean torch?"
            f" {ALLOWED} allowed_targets=[torchx] adds to them.",
        ),
        ("monitor=val/acuracy", f"monitor: no model logs val/acuracy. Did you mean val/accuracy? It may be {LOGGED}"),
        ("mode=max", "mode: max contradicts monitor=val/loss, of which lower is better: use mode=min."),
        ("seed=1,2", "seed: 1,2 is a sweep: add -m. For a list write seed=[1,2]."),
        ("l1=${nope}", "l1: Interpolation key 'nope' not found."),
        ("hydra.run.dir=${nope}/x", "hydra.run.dir: Interpolation key 'nope' not found."),
        ("paths.output=${nope}", "paths.output: Interpolation key 'nope' not found."),
        ("seed=${seed}", "seed: Recursive interpolation detected."),
        (
            "hydra/launcher=joblib",
            "hydra/launcher: there is no choice joblib. The choices are basic, local, slurm, submitit_local,"
            " submitit_slurm.",
        ),
        ("seed=-1", "seed: must be from 0 to 4294967295; it is -1."),
        ("trainer.threads=0", "trainer.threads: must be 1 or more, or auto; it is 0."),
        ("n_jobs=0", "n_jobs: must be 1 or more, or auto; it is 0."),
        ("threshold=1.5", "threshold: must be from 0 to 1; it is 1.5."),
        (
            "threshold=acuracy",
            "threshold: cannot be chosen for acuracy. Did you mean accuracy? It may be a number, accuracy,"
            " balanced_accuracy, f1 or f1/CLASS.",
        ),
        ("l1=nan", "l1: must be finite, 0 or more; it is NaN."),
        ("optimizer.betas=[0.9]", "optimizer.betas: must be a list of 2 (each a number); it is [0.9]."),
        (
            "optimizer.betas=[{_target_: os.system}, 0.9]",
            f"optimizer.betas.0._target_: os.system is outside the allowed packages. {ALLOWED}"
            " allowed_targets=[os] adds to them.",
        ),
        ("model._partial_=true", "model._partial_: must be false: the run needs the built object."),
        (
            "callbacks.progress._partial_=true",
            "callbacks.progress._partial_: must be false: the run needs the built object.",
        ),
        (
            "trainer.limit_val_batches=0",
            "trainer.limit_val_batches: 0 leaves no rows to measure monitor=val/loss on: use 1 or more, or"
            " monitor=train/loss.",
        ),
        ("~model.hiden", "model.hiden: Could not delete from config. 'model.hiden' does not exist."),
        (
            "a b",
            "a b: is not KEY=VALUE (LexerNoViableAltException: a b). Quote special characters: KEY='VALUE'.",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_reported(argument: str, problem: str) -> None:
    assert rejected(argument) == f"A setting is wrong:\n  command line: {problem}"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["data=table"],
            [
                "conf/data/table.yaml: data.path: must be given, text or a list (each text): data.path=VALUE.",
                "conf/data/table.yaml: data.target: must be given, text: data.target=VALUE.",
            ],
        ),
        (
            ["monitor=val/auroc"],
            ["conf/train.yaml: mode: min contradicts monitor=val/auroc, of which higher is better: use mode=max."],
        ),
        (
            ["trainer=cpu", "trainer.precision=16-mixed"],
            [
                "command line: trainer.precision: 16-mixed needs a GPU, but trainer.accelerator=cpu: use bf16-mixed or"
                " 32-true."
            ],
        ),
        (
            ["trainer.max_epochs=-1"],
            [
                "conf/scheduler/cosine.yaml: scheduler: models.training.lr_schedules.cosine needs the length of the"
                " run, but trainer.max_epochs and trainer.max_steps are both -1: set one, or use scheduler=none."
            ],
        ),
        (
            ["scheduler=none", "scheduler.warmup=0.1"],
            ["command line: scheduler.warmup: is not used: scheduler has no _target_. Choose one with scheduler=NAME."],
        ),
        (
            ["optimizer._target_=models.training.lr_schedules.step", "scheduler=none"],
            [
                "command line: optimizer.optimizer: must be given, a node of Optimizer.",
                "command line: optimizer.total_steps: must be given, an integer.",
                "conf/optimizer/adamw.yaml: optimizer.lr: unknown key. Known are gamma, milestones, optimizer,"
                " total_steps, warmup.",
                "conf/optimizer/adamw.yaml: optimizer.weight_decay: unknown key. Known are gamma, milestones,"
                " optimizer, total_steps, warmup.",
            ],
        ),
        (
            ["-m", "model=linear,mpl,lienar", "seed=0,x,1", "modle=mlp"],
            [
                f"command line: model: there is no choice lienar. Did you mean linear? The choices are {MODELS}.",
                f"command line: model: there is no choice mpl. Did you mean mlp? The choices are {MODELS}.",
                "command line: modle: unknown key. Did you mean mode?",
                'command line: seed: must be an integer; it is "x".',
            ],
        ),
        (
            ["search=seeds", "hydra.sweeper.params.seed='0,x'"],
            ['command line: seed: must be an integer; it is "x".'],
        ),
        (["-m", "loss=glob(m*)", "sead=1"], ["command line: sead: unknown key. Did you mean seed?"]),
        (["-m", "model=glob(q*)"], ["command line: model: has no value to sweep over."]),
        (["--config-dir", "nowhere"], ["command line: --config-dir: there is no folder nowhere."]),
        (
            ["-m", "seed=1,2", "model=linear,mlp", "hydra.sweep.subdir=s${seed}"],
            ["command line: hydra.sweep.subdir: several jobs would share s1: put ${hydra.job.num} in it."],
        ),
        (["--config-path", "/nowhere"], ["command line: --config-path: there is no folder /nowhere."]),
        (
            ["-cn", "trian"],
            ["command line: --config-name: there is no choice trian. Did you mean train? The choices are train."],
        ),
    ],
)
def test_mistakes_in_several_settings_are_reported_together(arguments: list[str], lines: list[str]) -> None:
    head = "A setting is wrong:" if len(lines) == 1 else f"{len(lines)} settings are wrong:"
    assert rejected(*arguments) == "\n  ".join([head, *lines])


@pytest.mark.parametrize(
    ("file", "text", "argument", "problem"),
    [
        (
            "model/own.yaml",
            "_target_: models.architectures.mlp.MLP\nhiden: [3]\ndropout: x\n",
            "model=own",
            '2 settings are wrong:\n  {file}: model.dropout: must be a number; it is "x".\n'
            "  {file}: model.hiden: unknown key. Did you mean hidden?",
        ),
        (
            "model/own.yaml",
            "_target_: models.architectures.mlp.MLP\nhidden: [3\n",
            "model=own",
            "A setting is wrong:\n  {file}: line 3, column 1: expected ',' or ']', but got '<stream end>'.",
        ),
        (
            "model/own.yaml",
            "dropout: 0.1\ndropout: 0.2\n",
            "model=own",
            "A setting is wrong:\n  {file}: line 2, column 1: found duplicate key dropout.",
        ),
        (
            "model/own.yaml",
            "defaults: [mpl]\n",
            "model=own",
            "A setting is wrong:\n  {file}: model: there is no choice mpl. Did you mean mlp? The choices are {models}.",
        ),
        (
            "experiment/own.yaml",
            "# @package _global_\ndefaults: [{{override /loss: hubber}}]\n",
            "experiment=own",
            "A setting is wrong:\n  {file}: loss: there is no choice hubber. Did you mean huber?"
            " The choices are auto, cross_entropy, focal, huber, mae, mse.",
        ),
        (
            "experiment/own.yaml",
            "# @package _global_\nmodel: {{hiden: [3]}}\nhydra: {{run: {{dri: x}}}}\n",
            "experiment=own",
            "A setting is wrong:\n  {file}: hydra.run.dri: Key 'dri' not in 'RunDir'.",
        ),
        (
            "search/own.yaml",
            "# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{params: {{sead: '0,1', l1: '0,x'}}}}}}\n",
            "search=own",
            '2 settings are wrong:\n  {file}: l1: must be a number; it is "x".\n'
            "  {file}: sead: unknown key. Did you mean seed?",
        ),
    ],
)
def test_a_mistake_in_a_file_is_reported_with_the_file(
    tmp_path: Path, file: str, text: str, argument: str, problem: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(text.format())
    assert rejected("--config-dir", str(tmp_path), argument) == problem.format(
        file=path, models=", ".join(sorted([*MODELS.split(", "), "own"]))
    )


def test_train_prints_all_mistakes_without_a_traceback() -> None:
    done = run_script("train.py", "model=mpl", "model.hiden=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "2 settings are wrong:\n"
        f"  command line: model: there is no choice mpl. Did you mean mlp? The choices are {MODELS}.\n"
        "  command line: model.hiden: unknown key. Did you mean hidden?\n"
    )


def test_an_error_of_lightning_is_reported_before_the_data_is_read(tmp_path: Path) -> None:
    done = run_script("train.py", "data.path=nowhere", "trainer.accelerator=tpuu", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stdout.startswith("trainer: You selected an invalid accelerator name: `accelerator='tpuu'`.")
    assert done.stderr == ""


def test_the_other_jobs_of_a_sweep_run_after_one_fails(tmp_path: Path) -> None:
    done = run_script(
        "train.py",
        "-m",
        "data=iris",
        "trainer.max_epochs=1",
        "model.dropout=2,0.1",
        "export=none",
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=${hydra.job.num}",
    )
    assert done.returncode == 2
    assert "model: dropout probability has to be between 0 and 1, but got 2\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.parent.name for path in tmp_path.glob("*/metrics.json")] == ["1"]


def test_help_and_cfg_are_printed() -> None:
    assert prepare(["--help"]) == ["--help"]
    shown = run_script("train.py", "--help").stdout
    assert f"\nmodel: {MODELS}\n" in shown
    examples = [line.split("#")[0].split()[2:] for line in shown.splitlines() if line.startswith("  python train.py")]
    assert len(examples) == 6
    for example in examples:
        if "resume=outputs/RUN" not in example:
            assert prepare(example) == example
    assert prepare(["--cfg", "job", "seed=1"]) == ["--cfg", "job", "seed=1"]
    assert rejected("--cfg", "job", "sead=1").endswith("sead: unknown key. Did you mean seed?")


def test_an_argument_that_is_in_no_file_is_passed_to_hydra_with_plus_signs() -> None:
    assert prepare(["seed=1", "optimizer.betas=[0.8,0.9]", "trainer.log_every_n_steps=1"]) == [
        "seed=1",
        "++optimizer.betas=[0.8,0.9]",
        "++trainer.log_every_n_steps=1",
    ]
    assert prepare(["-m", "optimizer.eps=1e-8,1e-7"]) == ["-m", "++optimizer.eps=1e-8,1e-7"]
    assert prepare(["+trainer.max_epochs=3"]) == ["++trainer.max_epochs=3"]


def test_a_package_in_allowed_targets_may_be_used() -> None:
    arguments = ["+callbacks.own._target_=collections.Counter", "allowed_targets=[collections]"]
    assert prepare(arguments) == arguments


NEEDED = {
    "data=table": ["data.path=rows.csv", "data.target=y"],
    "data=images": ["data.path=folder"],
    "experiment=images": ["data.path=folder"],
    "experiment=finetune": ["data.path=folder"],
    "model=torchvision": ["model.name=resnet34"],
    "search=optuna": ["model.dropout=0,0.1"],
}
SHIPPED = sorted(set((ROOT / "conf").glob("*/*.yaml")) - {ROOT / "conf" / "experiment" / "best.yaml"})
LARGE = ("ft_transformer", "mlp", "realmlp", "resnet", "tabm")
"""Searches over so many values that composing them takes seconds."""
CHOICES = [
    pytest.param(file, marks=pytest.mark.slow if file.parent.name == "search" and file.stem in LARGE else ())
    for file in SHIPPED
]


@pytest.mark.parametrize("file", CHOICES, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_shipped_choice_passes(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").touch(mode=0o755)  # for cluster=slurm
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    argument = f"{file.parent.name}={file.stem}"
    needed = NEEDED.get(argument, [])
    assert prepare([argument, *needed]) == [argument, *needed]


def default_keys() -> list[str]:
    """The leaf keys of the composed default config, without those that users name freely."""
    files = {"": "train", "data": "data/table"} | {
        group: f"{group}/{choice}"
        for group, choice in (
            ("model", "mlp"),
            ("loss", "auto"),
            ("optimizer", "adamw"),
            ("scheduler", "cosine"),
            ("trainer", "default"),
            ("callbacks", "default"),
            ("logger", "tensorboard"),
            ("paths", "default"),
        )
    }
    found = []
    for group, name in files.items():
        tree = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / f"{name}.yaml"))
        assert isinstance(tree, dict)
        tree.pop("defaults", None)
        found += [key for key, _ in leaves(tree, group) if "_target_" not in key and "_partial_" not in key]
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(default_keys()), st.integers(0, 30), st.sampled_from(string.ascii_lowercase), st.booleans())
def test_a_typo_of_one_letter_in_any_key_is_reported(key: str, at: int, letter: str, insert: bool) -> None:
    group, _, name = key.rpartition(".")
    at %= len(name)
    typo = name[:at] + letter + name[at + (not insert) :]
    assume(typo not in {other.rpartition(".")[2] for other in default_keys()})
    full = f"{group}.{typo}".lstrip(".")
    assert f"command line: {full}: unknown key." in rejected(f"++{full}=1")

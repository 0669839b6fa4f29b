"""The command that `resume` gives, and that runs never share a folder; test_run.py tests the resumed weights."""

import os
import shutil
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import run_script
from trainer.command.prepare import prepare
from trainer.config.errors import ConfigError
from trainer.config.settings import quoted

COMMAND = ("data=iris", "trainer.max_epochs=1", "logger=none", "export=none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    done = run_script("train.py", *COMMAND, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def runs(tmp_path: Path, finished: Path) -> Path:
    """A folder of runs: `older` and `newer` were interrupted, `finished` was not."""
    for age, name in enumerate(("older", "newer", "finished")):
        folder = shutil.copytree(finished, tmp_path / name)
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace(str(finished), str(folder)))
        os.utime(folder / "checkpoints" / "last.ckpt", (age, age))
        if name != "finished":
            (folder / "metrics.json").unlink()
            status = folder / "status.json"
            status.write_text(status.read_text().replace('"done"', '"interrupted"'))
    return tmp_path


def resumed(folder: Path, *overrides: str, checkpoint: str = "last") -> list[str]:
    return [*overrides, f"hydra.run.dir={folder}", f"resume={folder}/checkpoints/{checkpoint}.ckpt"]


def rejected(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(list(arguments))
    return str(caught.value)


def test_the_saved_command_comes_first_and_the_new_one_wins(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"resume={runs}/older", "trainer.max_epochs=2", "trainer.gradient_clip_val=1", "model.dropout=0.1"]
    assert prepare(given) == resumed(runs / "older", "data=iris", "logger=none", "export=none", *given[1:])
    assert capsys.readouterr().out == (
        "resume: trainer.gradient_clip_val null -> 1 (the command line wins)\n"
        "resume: trainer.max_epochs 1 -> 2 (the command line wins)\n"
    )


def test_a_checkpoint_may_be_given(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "older"
    assert prepare([f"resume={folder}/checkpoints/best.ckpt"]) == resumed(folder, *COMMAND, checkpoint="best")
    assert capsys.readouterr().out == ""


def test_a_file_that_changed_since_is_reported(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "conf" / "scheduler" / "cosine.yaml"
    changed.parent.mkdir(parents=True)
    changed.write_text("_target_: models.training.lr_schedules.cosine\n_partial_: true\nwarmup: 0.5\n")
    prepare(["--config-dir", str(tmp_path / "conf"), f"resume={runs}/older"])
    assert capsys.readouterr().out == (
        f"resume: scheduler.final 0.0 -> nothing ({changed} wins)\n"
        f"resume: scheduler.warmup 0.0 -> 0.5 ({changed} wins)\n"
    )


def test_a_resumed_run_is_resumed_again(runs: Path) -> None:
    folder = runs / "older"
    first = prepare([f"resume={folder}", "seed=0"])
    (folder / "overrides.yaml").write_text("".join(f"- {line}\n" for line in first if not line.startswith("hydra.")))
    assert prepare([f"resume={folder}"]) == first


def test_a_folder_with_spaces_is_quoted(runs: Path) -> None:
    folder = (runs / "older").rename(runs / "my run")
    assert prepare([f"resume='{folder}'"])[-2:] == [
        f"hydra.run.dir='{folder}'",
        f"resume='{folder}/checkpoints/last.ckpt'",
    ]


@given(st.text("019aefilnrstuxN_.-+:/~ ',=[](){}@", min_size=1))
@example("2026")
@example("null")
@example("1/2")
def test_hydra_reads_a_quoted_path_as_the_same_text(name: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(name)}").value() == name


def test_auto_selects_the_newest_unfinished_run_of_the_same_command(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The output folder is an override too, and so belongs to the command.
    for folder in runs.iterdir():
        (folder / "overrides.yaml").open("a").write(f"- paths.output={runs}\n")
    command = [*COMMAND, f"paths.output={runs}"]
    assert prepare([*command, "resume=auto"]) == resumed(runs / "newer", *command)
    assert f"resume: resuming {runs}/newer\n" in capsys.readouterr().out
    assert prepare([*command, "seed=5", "resume=auto"]) == [*command, "seed=5", "resume=null"]
    message = f"resume: no unfinished run of this command under {runs}: starting a new run\n"
    assert capsys.readouterr().out == message


def test_auto_with_a_folder_resumes_or_starts_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "older"
    assert prepare(["resume=auto", f"hydra.run.dir={folder}"]) == resumed(folder, *COMMAND)
    assert capsys.readouterr().out == f"resume: resuming {folder}\n"
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert prepare(["resume=auto", f"hydra.run.dir={folder}"]) == [f"hydra.run.dir={folder}", "resume=null"]
    assert capsys.readouterr().out == f"resume: {folder} has no checkpoint: starting a new run\n"


def test_a_folder_that_holds_a_run_is_not_shared(runs: Path) -> None:
    folder = runs / "older"
    assert rejected(f"hydra.run.dir={folder}") == (
        f"A setting is wrong:\n  command line: hydra.run.dir: {folder} already contains a run: resume it with"
        f" resume={folder}, or choose another folder."
    )
    assert rejected("-m", "seed=0,1", f"hydra.sweep.dir={runs}") == (
        f"A setting is wrong:\n  command line: hydra.sweep.dir: {runs} already contains a sweep: choose another folder."
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["resume={runs}/nope"], "resume: there is no {runs}/nope: give a run folder or a checkpoint in it."),
        (["resume={runs}"], "resume: {runs} is not a run folder: it has no overrides.yaml."),
        (
            ["resume={runs}/older", "hydra.run.dir={runs}/newer"],
            "hydra.run.dir: {runs}/newer is not the folder of resume={runs}/older: leave it out.",
        ),
        (
            ["-m", "resume={runs}/older", "seed=0,1"],
            "resume: resumes a single run, but this command is a sweep: use sweep.resume=FOLDER.",
        ),
        (
            ["resume={runs}/older", "callbacks=none"],
            "resume: there are no checkpoints to resume from with callbacks=none: use callbacks=default.",
        ),
        (["resume={runs}/older", "model.hiden=3"], "model.hiden: unknown key. Did you mean hidden?"),
        (
            ["resume={runs}/older", "optimizer.lr=0.1"],
            "optimizer.lr: was 0.001 when the run started, and the checkpoint contains it, so a change would have no"
            " effect: do not change it, or start a new run.",
        ),
        (
            ["resume={runs}/older", "monitor=val/log_loss"],
            'monitor: was "val/loss" when the run started, and the best epoch so far was chosen by it: do not change'
            " it, or start a new run.",
        ),
        (
            ["resume={runs}/older", "seed=1"],
            "seed: was 0 when the run started, and the order of the rows depends on it: do not change it, or start a"
            " new run.",
        ),
    ],
)
def test_what_cannot_be_resumed_is_rejected(runs: Path, arguments: list[str], problem: str) -> None:
    filled = [argument.format(runs=runs) for argument in arguments]
    assert rejected(*filled) == f"A setting is wrong:\n  command line: {problem.format(runs=runs)}"


def test_a_run_that_ended_without_a_checkpoint_is_rejected(runs: Path) -> None:
    (runs / "finished" / "checkpoints" / "last.ckpt").unlink()
    assert rejected(f"resume={runs}/finished") == (
        f"A setting is wrong:\n  command line: resume: {runs}/finished has no checkpoints/last.ckpt to resume from:"
        " start a new run in another folder."
    )


def test_folds_resume_from_their_own_checkpoints(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, fold = runs / "older", runs / "older" / "fold_0"
    fold.mkdir()
    (folder / "checkpoints").rename(fold / "checkpoints")
    command = [*COMMAND, "cross_validate=3", f"paths.output={runs}"]
    (folder / "overrides.yaml").write_text("".join(f"- {line}\n" for line in command))
    again = [*command, f"hydra.run.dir={folder}", "resume=null"]
    assert prepare([f"resume={folder}"]) == again
    assert prepare([*command, "resume=auto"]) == again
    assert f"resume: resuming {folder}\n" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "older"
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert prepare([f"resume={folder}"]) == [*COMMAND, f"hydra.run.dir={folder}", "resume=null"]
    assert capsys.readouterr().out == f"resume: {folder} has no checkpoint yet: starting from the beginning in it\n"


def test_a_mistake_in_a_saved_command_is_reported_with_its_file(runs: Path) -> None:
    saved = runs / "older" / "overrides.yaml"
    saved.write_text(saved.read_text() + "- ++model.size=3\n")
    assert rejected(f"resume={runs}/older").startswith(f"A setting is wrong:\n  {saved}: model.size: unknown key.")

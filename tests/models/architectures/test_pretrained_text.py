"""Pretrained encoders: equality with transformers, TorchScript, frozen layers, training, artifact, errors."""

import copy
import functools
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from datamodules.schema import InputSpec, TextSpec
from inference.artifact import Artifact
from models.architectures.pretrained_text import PretrainedText
from models.training.parameter_groups import parameter_groups
from tests.encoders import SPECIAL, transformers, vocabulary, write_encoder, write_tokenizer
from tests.models.problems import MIXED, script

TOKENS = (*SPECIAL, "good", "bad", "the", "##ly", "is", "it")
TEXT = InputSpec(texts=(TextSpec("note", TOKENS, (1.0,) * len(TOKENS)),))
FAMILIES = ("Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "ConvBert", "SqueezeBert")
GOLDEN = [0.6865, 0.6689, 0.6530]
"""Losses of the first three steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    transformers()
    torch.manual_seed(0)
    return str(write_encoder(tmp_path_factory.mktemp("encoder"), TOKENS))


def notes(lengths: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Texts with these numbers of tokens; the target is 1 if one of the tokens is "good"."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tokens = torch.randint(6, len(TOKENS) + 1, (int(offsets[-1]),), generator=generator)
    tokens[torch.rand(len(tokens), generator=generator) < 0.1] = 0
    good = [bool((tokens[start:end] == 6).any()) for start, end in itertools.pairwise(offsets)]
    return {
        "numbers": torch.zeros(len(lengths), 0),
        "codes": torch.zeros(len(lengths), 0).int(),
        "tokens.note": tokens.int(),
        "offsets.note": offsets,
        "target": torch.tensor(good).long(),
    }


def drawn(network: nn.Module) -> nn.Module:
    """Draws the weights with torch, so that they do not depend on the version of transformers."""
    generator = torch.Generator().manual_seed(0)
    for _, parameter in sorted(network.named_parameters()):
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network


@pytest.mark.parametrize(
    ("family", "pooling", "outputs"), [*((family, "mean", 3) for family in FAMILIES), ("Bert", "first", 1)]
)
def test_shapes_and_torchscript_of_any_length(tmp_path: Path, family: str, pooling: str, outputs: int) -> None:
    more = {"embedding_size": 32} if family == "SqueezeBert" else {}
    folder = write_encoder(tmp_path, TOKENS, family, **more)
    network = PretrainedText(TEXT, outputs, folder=str(folder), pooling=pooling, max_length=40).eval()
    scripted = script(copy.deepcopy(network))
    for lengths in ([3, 0, 5], [0], [], [60, 1, 2], [7, 2] * 40):
        batch = notes(lengths)
        assert network(batch).shape == (len(lengths), outputs)
        torch.testing.assert_close(scripted(batch), network(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_outputs_equal_those_of_transformers(folder: str, pooling: str) -> None:
    package = transformers()
    tokenizer = package.AutoTokenizer.from_pretrained(folder)
    model = package.AutoModel.from_pretrained(folder).eval()
    texts = ["good bad", "", "it is good, it is bad, it is badly the good", "unknowable goodly"]
    given = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=8)
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given.attention_mask.unsqueeze(2)
    expected = (hidden * mask).sum(1) / mask.sum(1) if pooling == "mean" else hidden[:, 0]

    # Tokens of a batch begin at 1, and 0 is unknown.
    rows = [
        [0 if token == tokenizer.unk_token_id else token + 1 for token in tokenizer(text).input_ids[1:-1]]
        for text in texts
    ]
    batch = {
        "tokens.note": torch.tensor([*itertools.chain(*rows)]).int(),
        "offsets.note": torch.tensor([0, *map(len, rows)]).cumsum(0),
    }
    network = PretrainedText(TEXT, 1, folder=folder, pooling=pooling, max_length=8).eval()
    network.head = nn.Identity()
    network.head.in_features = 32
    torch.testing.assert_close(network(batch), expected, rtol=0, atol=1e-5)


def test_all_parameters_are_trained_unless_frozen(folder: str) -> None:
    def trained(**settings: bool | int) -> tuple[set[str], set[str]]:
        network = PretrainedText(TEXT, 1, folder=folder, **settings)
        drawn(network)
        network(notes([4, 2, 9])).square().sum().backward()
        moved = {name for name, each in network.named_parameters() if each.grad is not None and each.grad.any()}
        return moved, {name for name, _ in network.named_parameters()}

    moved, every = trained()
    # Key biases have no effect on the softmax and thus no gradient.
    assert {name for name in every - moved if "key.bias" not in name} == set()
    assert trained(freeze=True)[0] == {"head.weight", "head.bias"}
    upper = {name for name in every if ".layer.1." in name or name.startswith("head.")}
    assert {name for name in upper - trained(freeze=1)[0] if "key.bias" not in name} == set()
    assert trained(freeze=1)[0] <= upper
    assert trained(freeze=2)[0] == {"head.weight", "head.bias"}


def test_the_encoder_has_dropout_in_training_unless_frozen(folder: str) -> None:
    batch = notes([4, 2, 9])
    tuned, frozen = (PretrainedText(TEXT, 1, folder=folder, dropout=0.0, freeze=freeze) for freeze in (False, True))
    assert not torch.equal(tuned(batch), tuned(batch))
    assert torch.equal(frozen(batch), frozen(batch))
    assert torch.equal(frozen.train()(batch), frozen.eval()(batch))


def test_learning_rates_of_encoder_and_head_by_name(folder: str) -> None:
    network = PretrainedText(TEXT, 1, folder=folder)
    groups = parameter_groups(network, functools.partial(torch.optim.AdamW, lr=1e-3), {"body.*": {"lr": 0.03}})
    rates = {id(each): group.get("lr", 1e-3) for group in groups for each in group["params"]}
    assert [rates[id(each)] for each in network.body.parameters()] == pytest.approx([3e-5] * 37)
    assert {rates[id(each)] for each in network.head.parameters()} == {1e-3}


def test_golden_losses(folder: str) -> None:
    network = drawn(PretrainedText(TEXT, 1, folder=folder, dropout=0.0)).eval()  # without the encoder's dropout
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    batch, losses = notes([4, 2, 9, 0, 5, 3] * 4), []
    for _ in GOLDEN:
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], batch["target"].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(GOLDEN, abs=1e-3)


def test_a_word_anywhere_in_the_text_is_learned(folder: str) -> None:
    lengths = [int(length) for length in torch.randint(1, 8, (600,), generator=torch.Generator().manual_seed(1))]
    torch.manual_seed(0)
    network = PretrainedText(TEXT, 1, folder=folder)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(60):
        batch = notes(lengths[:128], seed=step)
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], batch["target"].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = notes(lengths, seed=99)
    right = (network.eval()(test)[:, 0] > 0).long() == test["target"]
    assert right.float().mean() > 0.97


@pytest.mark.slow
def test_a_run_learns_and_its_artifact_needs_neither_transformers_nor_lathe(
    tmp_path: Path, data_dir: Path, run_here: Callable[..., Path]
) -> None:
    lines = (data_dir / "sms_spam" / "sms.tsv").read_text("utf-8").split("\n")[:1600]
    (tmp_path / "sms.tsv").write_text("\n".join(lines), "utf-8")
    texts = [line.split("\t")[1] for line in lines]
    folder = write_encoder(tmp_path / "encoder", vocabulary(texts[:800]), attention_probs_dropout_prob=0.0)
    run = run_here(
        "data=sms_spam", f"data.path={tmp_path / 'sms.tsv'}", f"data.wordpiece={folder}", "data.batch_size=32",
        "experiment=pretrained_text", "param_groups={body.*: {lr: 1.0}}", "optimizer.lr=2e-3", "trainer=cpu",
        "trainer.max_epochs=3", "logger=none", "baselines=false", f"paths.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    artifact = Artifact.load(run / "model.pt")
    artifact.check()
    answers = artifact.score(pl.DataFrame({"message": texts})).answers
    truth = pl.Series([line.split("\t")[0] for line in lines])
    assert (answers["label"] == truth).mean() > 0.95

    program = (
        "import sys; sys.modules['transformers'] = None; import torch;"
        f"model = torch.jit.load({str(run / 'model.pt')!r});"
        f"print(model({{}}, {{'message': {texts[:3]!r}}}, {{}})['probabilities'][:, 1].tolist());"
        "assert not {'models', 'datamodules', 'inference', 'common'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = answers["probability_spam"][:3].to_list()
    assert [float(each) for each in done.stdout.strip("[]\n").split(",")] == pytest.approx(expected, abs=1e-5)


def refused(message: str, spec: InputSpec = TEXT, **settings: object) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PretrainedText(spec, 1, **settings)


def test_columns_other_than_one_text_are_refused() -> None:
    refused(
        "pretrained_text supports only texts, but there are numbers, texts and images: use model=fusion, or drop"
        " columns with data.columns='{size: drop, photo: drop}'.",
        MIXED,
        folder="there",
    )
    two = InputSpec(texts=(TextSpec("a", (), ()), TextSpec("b", (), ())))
    refused(
        "pretrained_text supports one text column, but there are a, b: drop all but one, for example with"
        " data.columns='{b: drop}', or use model=text_transformer, fusion or mlp.",
        two,
        folder="there",
    )


def test_invalid_settings_are_refused(folder: str) -> None:
    refused("folder: pretrained_text needs the folder of an encoder: set data.wordpiece=DIR.", folder=None)
    refused("folder=there: no such folder.", folder="there")
    refused("pooling='max': must be mean or first.", folder=folder, pooling="max")
    refused("freeze=3: must be true, false or a number of layers up to 2.", folder=folder, freeze=3)
    refused("max_length=129: must be from 3 to 128, the maximum of this encoder.", folder=folder, max_length=129)


def test_an_unsuitable_folder_is_refused(folder: str, tmp_path: Path) -> None:
    spec = InputSpec(texts=(TextSpec("note", ("good", "bad"), (1.0, 1.0)),))
    refused(
        f"folder={folder}: the tokens of 'note' are not those of this encoder: set data.wordpiece to its folder.",
        spec,
        folder=folder,
    )
    bare = write_tokenizer(tmp_path / "bare", TOKENS)
    with pytest.raises(ValueError, match=rf"^folder={bare}: has no encoder that transformers can load: \w+: "):
        PretrainedText(TEXT, 1, folder=str(bare))
    other = write_encoder(tmp_path / "other", TOKENS)
    weights = write_encoder(tmp_path / "weights", TOKENS, num_hidden_layers=1, intermediate_size=48)
    (weights / "model.safetensors").rename(other / "model.safetensors")
    with pytest.raises(ValueError, match=r"its weights do not match its config\.json: ") as raised:
        PretrainedText(TEXT, 1, folder=str(other))
    assert "encoder.layer.0.intermediate.dense.weight (48, 32) instead of (64, 32)" in str(raised.value)
    assert str(raised.value).endswith("and 14 more.")


def test_without_transformers_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(
        "pretrained_text needs transformers, which is not installed: uv sync --extra text, or"
        " pip install transformers.",
        folder=str(tmp_path),
    )

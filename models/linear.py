"""Linear and logistic regression on encoded columns: the baseline that every other network has to beat."""

from torch import Tensor, nn

from datamodules.schema import InputSpec
from models.inputs import Inputs


class Linear(nn.Module):
    """One linear layer that starts at zero, so that it starts at even odds or at the mean.

    Categories stay one-hot up to `one_hot_max` levels, far more than in a deep network: one weight a level is what
    makes it linear. Gives (rows, outputs) logits or standardised values.
    """

    def __init__(
        self,
        inputs: InputSpec,
        outputs: int,
        *,
        number_size: int = 0,
        embedding_size: int = 8,
        one_hot_max: int = 256,
        unknown_rate: float = 0.01,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(
            inputs,
            number_size=number_size,
            one_hot_max=one_hot_max,
            embedding_size=embedding_size,
            unknown_rate=unknown_rate,
        )
        self.layer = nn.Linear(self.inputs.width, outputs)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.layer(self.inputs(batch))
        return output

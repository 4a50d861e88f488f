"""Deep ensembles (Lakshminarayanan, Pritzel, Blundell, NIPS 2017): several networks that average their predictions."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcolor.models.ltbc import LTBC


class Ensemble(nn.Module):
    """Networks `ltbc` whose predictions are averaged: the a*b*, or the log-probabilities of the color classes.

    Has the interface of `ltbc.LTBC`; the global features of all members are concatenated.
    """

    members: tuple[LTBC, ...]

    @property
    def output_activation(self) -> str:
        """As in the members."""
        return self.members[0].output_activation

    @property
    def output_space(self) -> str:
        """As in the members."""
        return self.members[0].output_space

    @property
    def color_classes(self) -> int:
        """As in the members."""
        return self.members[0].color_classes

    @property
    def decoder(self) -> str:
        """As in the members."""
        return self.members[0].decoder

    def __call__(
        self, lightness: jax.Array, global_features: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Colorizes a batch.

        Args:
            lightness: L*/100, float (B, H, W, 1).
            global_features: float (B, M * G) of `global_features` of M members; None for the photos' own.
            train: training mode.

        Returns:
            As `ltbc.LTBC`.
        """
        features: Sequence[jax.Array | None] = [None] * len(self.members)
        if global_features is not None:
            features = jnp.split(global_features, len(self.members), axis=-1)
        return _average([member(lightness, f, train=train) for member, f in zip(self.members, features, strict=True)])

    def global_features(self, lightness: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """L*/100 (B, H, W, 1) -> global features of all members (B, M * G), and class logits (B, classes) or None."""
        vectors, logits = zip(*(member.global_features(lightness, train=train) for member in self.members), strict=True)
        average = None if logits[0] is None else _average([{'logits': each} for each in logits])['logits']
        return jnp.concatenate(vectors, axis=-1), average


def _average(outputs: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The mean of each output over the members; of the log-probabilities for logits."""

    def normalize(name, output):
        return jax.nn.log_softmax(output) if name.endswith('logits') else output

    return {name: sum(normalize(name, output[name]) for output in outputs) / len(outputs) for name in outputs[0]}

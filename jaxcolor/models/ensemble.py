"""Several networks of one kind as one (Lakshminarayanan, Pritzel, Blundell, NIPS 2017, *Deep ensembles*)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Ensemble(nn.Module):
    """Networks `ltbc` that answer with the mean of their answers: of a*b*, or of the logarithms of their likelihoods.

    Takes and returns what a single one does (`ltbc.LTBC`); the global features of all stand behind one another.
    """

    members: tuple[nn.Module, ...]

    @property
    def output_activation(self) -> str:
        """That of the members."""
        return self.members[0].output_activation

    @property
    def color_classes(self) -> int:
        """That of the members."""
        return self.members[0].color_classes

    @property
    def decoder(self) -> str:
        """That of the members."""
        return self.members[0].decoder

    def __call__(self, lightness, global_features=None, *, train: bool = False):
        """float (B, H, W, 1) and perhaps (B, M * G) of `global_features` -> as `ltbc.LTBC`."""
        features = [None] * len(self.members)
        if global_features is not None:
            features = jnp.split(global_features, len(self.members), axis=-1)
        answers = [member(lightness, own, train=train) for member, own in zip(self.members, features, strict=True)]
        return _mean(answers)

    def global_features(self, lightness, *, train: bool = False):
        """float (B, H, W, 1) -> global features of all members (B, M * G), and the class logits or None."""
        vectors, logits = zip(*(member.global_features(lightness, train=train) for member in self.members), strict=True)
        classes = None if logits[0] is None else _mean([{'logits': each} for each in logits])['logits']
        return jnp.concatenate(vectors, axis=-1), classes


def _mean(answers):
    def comparable(name, each):
        return jax.nn.log_softmax(each) if name.endswith('logits') else each

    return {name: sum(comparable(name, answer[name]) for answer in answers) / len(answers) for name in answers[0]}

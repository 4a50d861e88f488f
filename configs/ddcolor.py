"""DDColor (Kang et al., ICCV 2023, arXiv:2212.11613): its network, trained with those of its losses that need no download.

    python -m jaxcolor.main --config=configs/ddcolor.py --config.data.shards=IMAGENET_SHARDS
    python -m jaxcolor.main --config=configs/ddcolor.py:large --config.data.shards=IMAGENET_SHARDS

By the options file of its published code: photos of 256 pixels, mirrored, 16 a step, 400,000 steps; AdamW at 1e-4 with beta1
0.9, beta2 0.99, weight decay 0.01; 0.1 times the mean absolute error in units of a*b*, 0.5 times the colorfulness loss
(section 3.4), 1 - (sigma + 0.3 mu) of the predicted photo, and the loss of fooling its discriminator of patches. Here an
error counts in units of 128, so all weights are divided by 12.8, which Adam does not notice.

What differs: the perceptual loss is left out, which needs VGG16-BN's ImageNet weights, so colors will be paler. The
discriminator takes its step ahead of the network's, sees L*a*b* instead of RGB, of photos as they are and not 1.2 times as
colorful, and has the network's optimizer, with its weight decay; --config.task.adversarial=0 leaves it out. The published
code adds up the colorfulness losses of a GPU's four photos and takes the mean of all else; here it is their mean, a quarter
of that (--config.task.colorfulness=0.15625 is as much). The encoder starts from random numbers, not from ImageNet; start
from a published network by --config.train.init_from. The published rate halves first after 80,000 steps, then every 40,000;
here every 40,000. The network's spectral norms are folded into its kernels, and the training does without.
"""

from jaxcolor import config as base

PIXEL_WEIGHT, COLORFULNESS_WEIGHT, ADVERSARIAL_WEIGHT = 0.1, 0.5, 1.0


def get_config(variant: str = ''):
    """variant: '' (tiny) or 'large'."""
    base.choose(dict.fromkeys(('', 'large')), variant)
    config = base.get_config()
    config.name = f'ddcolor-{variant or "tiny"}'
    config.model = base.ddcolor()
    config.model.variant = variant or 'tiny'
    scale = 128 * PIXEL_WEIGHT
    config.task.update({'alpha': 0.0, 'error': 'absolute', 'colorfulness': COLORFULNESS_WEIGHT / scale})
    config.task.adversarial = ADVERSARIAL_WEIGHT / scale
    config.optimizer.update({'name': 'adam', 'learning_rate': 1e-4, 'beta1': 0.9, 'beta2': 0.99, 'weight_decay': 0.01})
    config.optimizer.update({'schedule': 'step', 'decay_every': 40_000, 'decay_factor': 0.5})
    config.data.crop = 256
    config.train.update({'batch_size': 16, 'steps': 400_000})
    return config
